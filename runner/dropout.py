"""Dropout whose masks are keyed like all randomness: the same alone, side by side with other runs, and resumed."""

import torch
from torch import Tensor, nn

from runner import distributed, keyed


class Masks:
    """The random numbers of a run's dropout layers, for one replica or K.

    A layer's mask depends on (seed, layer, step, number of the forward pass within the step), and on the process where
    there are several. The engine sets the last two: `step`, and `forwards`, which counts micro-batches and passes.
    """

    def __init__(self, seeds: list[int]):
        self.seeds = seeds
        self.step = self.forwards = 0

    def install(self, model: nn.Module) -> nn.Module:
        """Replace every nn.Dropout of the model, and be the `masks` of every module that has a place for them."""
        for name, module in model.named_modules():
            if getattr(module, "masks", self) is None:
                module.masks = self
            for child, layer in module.named_children():
                if type(layer) is nn.Dropout and layer.p > 0:
                    setattr(module, child, Dropout(layer.p, f"{name}.{child}", self))
        return model

    def draw(self, k: int, layer: str, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) in the shape of `like`, for replica k."""
        key = (self.step, self.forwards, distributed.rank)
        seed = keyed.generator(self.seeds[k], f"dropout {layer}", *key).integers(2**63)
        generator = torch.Generator(like.device).manual_seed(int(seed))
        return torch.rand(like.shape, generator=generator, device=like.device)


class Dropout(nn.Module):
    """Dropout (Srivastava et al., JMLR 2014): x * 1[u >= p] / (1 - p) in training, x in evaluation, with keyed u."""

    def __init__(self, p: float, name: str, masks: Masks):
        super().__init__()
        self.p, self.name, self.masks = p, name, masks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * ((uniform(x, self.masks, self.name) >= self.p).to(x.dtype) / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def uniform(like: Tensor, masks: Masks, layer: str) -> Tensor:
    """`Masks.draw` for this replica: numbers in [0, 1) in the shape of `like`."""
    return _Uniform.apply(like, masks, layer)


class _Uniform(torch.autograd.Function):
    """`Masks.draw` as one operation, of which vmap asks all replicas at once."""

    @staticmethod
    def forward(x: Tensor, masks: Masks, layer: str) -> Tensor:
        return masks.draw(0, layer, x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info, in_dims, x: Tensor, masks: Masks, layer: str) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return torch.stack([masks.draw(k, layer, x[k]) for k in range(info.batch_size)]), 0
