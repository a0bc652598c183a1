"""Low-rank adaptation."""

from fnmatch import fnmatchcase
from math import sqrt

from torch import Tensor, nn

from runner.core.batch import Batch
from runner.core.mistake import nearest
from runner.core.schema import Count, Positive
from runner.transform import Transform
from runner.transform.maps import layers, put


class Low(nn.Module):
    """w + scale * B A, in the shape of w."""

    def __init__(self, weight: Tensor, rank: int, scale: float):
        super().__init__()
        rows = weight.flatten(1)
        self.scale = scale
        self.a, self.b = (
            nn.Parameter(rows.new_empty(rank, rows.shape[1])),
            nn.Parameter(rows.new_zeros(len(rows), rank)),
        )
        nn.init.kaiming_uniform_(self.a, a=sqrt(5))

    def forward(self, w: Tensor) -> Tensor:
        return w + self.scale * (self.b @ self.a).to(w.dtype).view(w.shape)


class LoRA(Transform):
    """LoRA (Hu et al., ICLR 2022, arXiv:2106.09685, section 4.1): of every Linear and Conv2d with weight W_0 (m, n)

        W = W_0 + alpha / rank * B A        A (rank, n), B (m, rank)

    A and B alone are trained, and what is called `also`; everything else is frozen, biases and the parameters of
    normalisation too (whose running statistics go on). B starts at 0, so that the network starts as it was, bit for
    bit; A as the authors' code draws it, uniform with variance 1 / (3 n). A kernel (o, i, h, w) counts as (o, i h w).

    Parameters
    ----------
    rank : int, default 4. alpha : float, default 4.
    skip : list of str, default []
        Shell patterns for names of layers that get no A and B: `body.0*`.
    also : list of str, default [head*]
        The same for tensors that are trained as they are; layers of which one is so get no A and B.

    Raises
    ------
    ValueError
        From `prepare`: a pattern that nothing fits, or no layer left.
    """

    when = "adapt"

    def __init__(
        self,
        rank: Count = 4,
        alpha: Positive = 4.0,
        skip: list[str] = [],  # noqa: B006 (only read)
        also: list[str] = ["head*"],  # noqa: B006
    ):
        self.rank, self.alpha, self.skip, self.also = rank, alpha, skip, also

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        names = [name for name, _ in model.named_parameters()]
        for pattern in self.also:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"no tensor is called {nearest(pattern, names)}")

        def trained(name: str) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in self.also)

        chosen = {name: layer for name, layer in layers(model, self.skip).items() if not trained(f"{name}.weight")}
        if not chosen:
            raise ValueError(f"every Linear and Conv2d of {type(model).__name__} is trained whole: see also and skip")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained(name))
        for layer in chosen.values():
            put(layer, Low(layer.weight.detach(), self.rank, self.alpha / self.rank))
        return model

    def notices(self, run) -> list[str]:
        if run.origin is None:
            return ["transform=lora: without checkpoint= the weights that it adapts are random ones"]
        return []
