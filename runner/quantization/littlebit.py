"""Binary low-rank factors with scales."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.core.batch import Batch
from runner.core.precision import wide
from runner.core.schema import Positive
from runner.quantization import Transform
from runner.quantization.fake import Same, targets
from runner.quantization.quantizer import sign
from runner.quantization.standin import bound

MULTIPLE = 8  # ranks are multiples of it, and at least it
SCALE_BITS = 16  # of a number in the scale vectors, as the rule for the rank counts them


class SmoothSign(torch.autograd.Function):
    """The sign, 1 at zero, with the gradient of tanh(sharpness * x)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, sharpness: Tensor) -> Tensor:
        return sign(x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        x, sharpness = ctx.saved_tensors
        return grad * sharpness * (1 - torch.tanh(sharpness * x).square()), None


class Factors(nn.Module):
    """W^ = diag(u1) sign(U) diag(v1 * u2) sign(V) diag(v2), made from W (b, a) by Dual-SVID.

    Of zeros alone it is made from numbers drawn with `seed`, uniform within 1 / sqrt(a), but u1 is 0: W^ is what it
    was, and has a gradient.
    """

    def __init__(self, w: Tensor, rank: int, sharpness: float, seed: int):
        super().__init__()
        zeros = not w.any()
        if zeros:
            draw = torch.rand(w.shape, generator=torch.Generator().manual_seed(seed))
            w = (2 * draw.to(w) - 1) * bound(w)
        left, values, right = torch.linalg.svd(w, full_matrices=False)
        root = values[:rank].sqrt()
        self.U, self.V = nn.Parameter(left[:, :rank] * root), nn.Parameter(root[:, None] * right[:rank])
        self.u1, self.u2 = (nn.Parameter(vector) for vector in rank_one(self.U.detach().abs()))
        self.v1, self.v2 = (nn.Parameter(vector) for vector in rank_one(self.V.detach().abs()))
        if zeros:
            self.u1.data.zero_()
        self.register_buffer("sharpness", w.new_tensor(sharpness))

    def forward(self) -> tuple[Tensor, Tensor]:
        """(r, a) and (b, r), whose product is W^."""
        v = SmoothSign.apply(wide(self.V), self.sharpness) * self.v2 * (self.v1 * self.u2)[:, None]
        return v, SmoothSign.apply(wide(self.U), self.sharpness) * self.u1[:, None]

    def decode(self) -> Tensor:
        v, u = self()
        return (u @ v).detach()


def rank_one(x: Tensor) -> tuple[Tensor, Tensor]:
    """The best x ~ outer(p, q), the root of the singular value on either side; of x >= 0 both are taken positive."""
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    return left[:, 0].abs() * values[0].sqrt(), right[0].abs() * values[0].sqrt()


@dataclass
class Parts:
    """A weight as it is stored: for each part the signs as 0 and 1, uint8, and the three vectors of scales."""

    parts: list[dict[str, Tensor]]  # U (b, r), V (r, a), rows (b,), ranks (r,), columns (a,)

    def decode(self) -> Tensor:
        def signs(bits: Tensor) -> Tensor:
            return 2.0 * bits - 1

        return sum(
            (p["rows"][:, None] * signs(p["U"])) @ (p["ranks"][:, None] * signs(p["V"]) * p["columns"])
            for p in self.parts
        )


class Factored:
    """What the two kinds of layers share: `factors`, one or two, in the place of the weight."""

    def codes(self) -> Parts:
        return Parts(
            [
                {
                    "U": (f.U >= 0).to(torch.uint8),
                    "V": (f.V >= 0).to(torch.uint8),
                    "rows": f.u1.detach(),
                    "ranks": (f.v1 * f.u2).detach(),
                    "columns": f.v2.detach(),
                }
                for f in self.factors
            ]
        )

    def bits(self) -> float:
        """Stored bits for each weight of the layer that was."""
        stored = sum(f.U.numel() + f.V.numel() + SCALE_BITS * (len(f.u1) + len(f.u2) + len(f.v2)) for f in self.factors)
        return stored / (len(self.factors[0].u1) * len(self.factors[0].v2))


class FactoredLinear(Factored, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = sum(F.linear(F.linear(x, v), u) for v, u in (f() for f in self.factors))
        return y if self.bias is None else y + self.bias.to(y.dtype)


class FactoredConv2d(Factored, nn.Conv2d):
    """To r channels with the kernel, then to all of them with one of 1 x 1."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = (-1, self.in_channels, *self.kernel_size)
        pairs = (f() for f in self.factors)
        y = sum(F.conv2d(self._conv_forward(x, v.view(kernel), None), u[:, :, None, None]) for v, u in pairs)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)


class FactoredSame(FactoredConv2d, Same):
    """The same of a convolution that pads as TensorFlow does."""


FACTORED = {nn.Linear: FactoredLinear, nn.Conv2d: FactoredConv2d, Same: FactoredSame}


class LittleBit(Transform):
    """LittleBit (Lee et al., NeurIPS 2025, arXiv:2506.13771): weights as binary factors of low rank with three scales,

        y = u1 * (sign(U) ((v1 * u2) * (sign(V) (v2 * x)))),   U (b, r), V (r, a)

    and a second such pair added to it, which starts from what the first leaves of W. As in the authors' code
    (SamsungLabs/LittleBit, quantization/modules/littlebit.py):

        rank     r = (a b bits - 16 (a + b)) / (a + b + 16), with a residual (a b bits - 32 (a + b)) / (2 (a + b + 16)),
                 rounded down to a multiple of 8, at least 8; here at most min(a, b) too
        start    W ~ U V by a truncated SVD with the roots of the singular values on either side, then
                 |U| ~ outer(u1, u2) and |V| ~ outer(v1, v2) by rank-one SVDs (Dual-SVID); exact ones here,
                 randomised ones there
        gradient of tanh(100 x) in the place of the sign's (its SmoothSign)

    The defaults are those of the commands in its README. There, for language models, linear layers are replaced but not
    the last; here convolutions too, over a = in_channels * kernel positions, except grouped ones, and first and last
    layer stay. Small layers end above `bits`, as their rank is at least 8: `bits()` of a layer says where. Inputs stay
    in full precision. Sharpness methods see factors: their norms and radii are those of U, V and scales, of which only
    the products are weights. The code trains by distillation from the unquantized model, KL of the logits plus 10 times
    the squared error of hidden states; here training has the run's own loss.

    Parameters
    ----------
    bits : asked for, for each weight, scales counted as 16 bits. Default 1.
    residual : the second pair. Default true.
    sharpness : of the tanh. Default 100.
    ends : the first and the last layer; `same` as the others or `float`. Default `float`.

    Raises
    ------
    ValueError
        From `prepare`: no layer to replace.
    """

    maps = False  # it goes by the weights themselves

    def __init__(
        self,
        bits: Positive = 1.0,
        residual: bool = True,
        sharpness: Positive = 100.0,
        ends: Literal["same", "float"] = "float",
    ):
        self.bits, self.residual, self.sharpness, self.ends = bits, residual, sharpness, ends

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        chosen = [target.layer for target in targets(model, batch, 1, self.ends).values()]
        chosen = [layer for layer in chosen if getattr(layer, "groups", 1) == 1]
        if not chosen:
            raise ValueError("nothing to replace: all convolutions between the first and the last layer are grouped")
        for layer in chosen:
            self.replace(layer)
        return model

    def replace(self, layer: nn.Module) -> None:
        w = wide(layer.weight.detach().flatten(1))
        rank = self.rank(*w.shape)
        factors = [Factors(w, rank, self.sharpness, seed=0)]
        if self.residual:
            factors.append(Factors(w - factors[0].decode(), rank, self.sharpness, seed=1))
        layer.__class__ = FACTORED[type(layer)]
        layer.weight = None
        layer.factors = nn.ModuleList(factors).train(layer.training)

    def rank(self, outputs: int, inputs: int) -> int:
        parts, ends = 1 + self.residual, outputs + inputs
        rank = (outputs * inputs * self.bits - parts * SCALE_BITS * ends) / (parts * (ends + SCALE_BITS))
        return min(max(int(rank) // MULTIPLE * MULTIPLE, MULTIPLE), outputs, inputs)

    def convert(self, model: nn.Module, batch: Batch) -> nn.Module:
        return model
