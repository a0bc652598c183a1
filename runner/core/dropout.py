"""Dropout whose masks are keyed like all randomness: the same alone, side by side with other runs, and resumed; and
what makes every pass of a step draw the same numbers, whoever draws them."""

import random
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from runner.core import distributed, keyed


class Masks:
    """The random numbers of a run's dropout layers, for one replica or K.

    A layer's mask depends on (seed, layer, step, number of the micro-batch within the step), and on the process where
    there are several. The engine sets the last two: `step`, and `forwards`, which counts the micro-batches of a pass;
    every pass of a step counts them from where the first did, so that all have the same masks.
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


class Draws:
    """Where a run's random numbers stand: the masks' count of forwards, and the global generators, of which layers of
    torch and third-party code draw. A step's later passes go back to where its first one began: all of them are passes
    of one random function, as in the code of SAM's authors, whose two passes share one key.

    Numpy's and Python's generators, whose states take long to read beside a small step, are kept where some part is
    neither torch's nor this package's.
    """

    def __init__(self, masks: Masks, device: torch.device, parts: Iterable[object]):
        self.masks = masks
        self.generators = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self.generators.append(torch.cuda.default_generators[index])
        self.foreign = any(type(part).__module__.partition(".")[0] not in ("torch", "runner") for part in parts)

    def seed(self, seed: int) -> None:
        """Begin anew, in whichever process."""
        for generator in self.generators:
            generator.manual_seed(seed)
        if self.foreign:
            np.random.seed(seed % 2**32), random.seed(seed)

    def where(self) -> tuple:
        others = (np.random.get_state(), random.getstate()) if self.foreign else None
        return self.masks.forwards, [generator.get_state() for generator in self.generators], others

    def go(self, place: tuple) -> None:
        """To a place that `where` gave."""
        self.masks.forwards, states, others = place
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)
        if others is not None:
            np.random.set_state(others[0]), random.setstate(others[1])


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
    return _Uniform.apply(like.detach(), masks, layer)  # of which no mode of differentiation is asked


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
