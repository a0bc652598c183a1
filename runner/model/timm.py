"""Any image classifier of the timm library."""

from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from runner.dataset.online import at_once
from runner.model import Classifier
from runner.model.shapes import image

GIVEN = ("in_chans", "num_classes", "pretrained", "model_name")  # never in `args`


class Timm(Classifier):
    """`timm.create_model(name)` for the data set's channels, classes and image size (Wightman, 2019).

    `head` is the model's own classifier and `body` the model with the identity in its place, so that dropout and
    pooling stay where timm has them; a classifier that is a 1 x 1 convolution becomes the same linear layer. At
    construction forward passes over one image check that head(body(x)) is what timm's model itself returns. Models
    whose logits are not one classifier applied to one feature vector (two distilled heads, auxiliary outputs) are
    refused.

    The image size is passed on to models that are built for one (such as vision transformers). Pretrained weights
    expect images normalised as in their `pretrained_cfg`; that is the data set's business.

    Parameters
    ----------
    shape : tuple of int
        (C, H, W).
    classes : int
        The number of logits.
    name : str
        A name from `timm.list_models()`, with or without a pretrained tag (`resnet18.a1_in1k`), or one that starts with
        `hf-hub:` or `local-dir:`.
    pretrained : bool, default False
        Start from timm's pretrained weights (from its cache or the hub).
    args : dict, default {}
        Passed on to `timm.create_model`: `{drop_path_rate: 0.1}`, `{patch_size: 4}`.

    Raises
    ------
    ValueError
        No name, an unknown name, arguments or an image size that the model does not take, an image that is not a
        multiple of the model's patches, no pretrained weights, or a model without one classifier.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        name: str | None = None,
        pretrained: bool = False,
        args: dict[str, Any] = {},  # noqa: B006 (only read)
    ):
        channels, height, width = image(shape, "timm")
        if not name:
            raise ValueError("model=timm needs a name: set model.name= to one of timm's models, such as resnet18")
        if clash := [key for key in GIVEN if key in args]:
            raise ValueError(f"model.args must not set {', '.join(clash)}: the data set and the model node do")
        model = create(name, pretrained, (height, width), {"in_chans": channels, "num_classes": classes, **args})
        check_patches(model, name, height, width)

        x = torch.linspace(-1, 1, channels * height * width, device=next(model.parameters()).device)
        x = x.view(1, channels, height, width)
        run(model, x, name)
        head = model.get_classifier()
        head = getattr(head, "fc", head)  # a few models name their pooling and classifier together
        where = next((key for key, module in model.named_modules() if module is head), None)
        refusal = f"timm's {name} has no single classifier behind one feature vector and cannot be used here"
        if where is None:
            raise ValueError(refusal)
        drawn = [parameter.detach().clone() for parameter in head.parameters()]
        fill(head, [torch.linspace(-1, 1, value.numel(), device=value.device) for value in drawn])
        expected = run(model, x, name)
        model.set_submodule(where, nn.Identity())
        super().__init__(model, linear(head))
        try:
            out = run(self, x, name)
            same = out.features.ndim == 2 and torch.allclose(out.logits, expected, rtol=1e-3, atol=1e-4)
        except ValueError as error:
            raise ValueError(refusal) from error
        if not same:
            raise ValueError(refusal)
        fill(self.head, drawn)


def create(name: str, pretrained: bool, size: tuple[int, int], args: dict[str, Any]) -> nn.Module:
    """timm's model, with `img_size` where its constructor takes one; every failure is one line."""
    if pretrained or name.startswith("hf-hub:"):
        with at_once() as wrong:
            return _create(name, pretrained, size, args, wrong)
    return _create(name, pretrained, size, args, None)


def _create(name: str, pretrained: bool, size: tuple[int, int], args: dict[str, Any], wrong: str | None) -> nn.Module:
    import timm

    if ":" not in name:
        if not timm.is_model(name):
            close = get_close_matches(name, timm.list_models(), n=3)
            hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else "timm.list_models() lists them."
            raise ValueError(f"timm has no model {name!r}. {hint}")
        if pretrained and not timm.is_model_pretrained(name):
            raise ValueError(f"timm has no pretrained weights for {name}: set model.pretrained=false")
    try:
        try:
            return timm.create_model(name, pretrained=pretrained, **{"img_size": size, **args})
        except TypeError as error:
            # convolutional models take images of any size and have no such argument
            if "img_size" not in str(error) or "img_size" in args:
                raise
        return timm.create_model(name, pretrained=pretrained, **args)
    except Exception as error:
        asked = f"; the hub cannot be asked ({wrong}), what it has must be cached" if wrong else ""
        raise ValueError(f"timm could not build {name}: {line(error)}{asked}") from error


def check_patches(model: nn.Module, name: str, height: int, width: int) -> None:
    """timm leaves out the pixels beyond the last whole patch without a word."""
    embed = getattr(model, "patch_embed", None)
    cut = getattr(embed, "proj", None)
    if not isinstance(cut, nn.Conv2d) or cut.kernel_size != cut.stride or getattr(embed, "dynamic_img_pad", False):
        return
    rows, columns = cut.stride
    if height % rows or width % columns:
        raise ValueError(
            f"timm's {name} cuts images into patches of {rows} x {columns} pixels, and {height} x {width} is not a "
            "multiple of that: set patch_size in model.args, where the model has it, or choose another model"
        )


def run(model: nn.Module, x: torch.Tensor, name: str):
    """One forward pass in evaluation mode; what the model cannot take is one line."""
    training = model.training
    try:
        with torch.no_grad():
            return model.eval()(x)
    except Exception as error:
        raise ValueError(f"timm's {name} does not take images of shape {tuple(x.shape[1:])}: {line(error)}") from error
    finally:
        model.train(training)


def linear(head: nn.Module) -> nn.Module:
    """A 1 x 1 convolution as the linear layer that it is; anything else as it came."""
    if not isinstance(head, nn.Conv2d) or head.kernel_size != (1, 1) or head.groups != 1:
        return head
    layer = nn.Linear(head.in_channels, head.out_channels, bias=head.bias is not None, device="meta")
    layer.weight = nn.Parameter(head.weight.detach().flatten(1))
    layer.bias = head.bias
    return layer


def fill(module: nn.Module, values: list[torch.Tensor]) -> None:
    """Copies the values into the module's parameters, in order: a zero classifier would make any check pass."""
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(value.view_as(parameter))


def line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
