"""Muon: momentum, orthogonalized."""

import torch
from torch import Tensor

from runner.core.layout import Layout
from runner.core.schema import Count, NonNegative, OpenFraction, Positive
from runner.core.weights import column
from runner.optim import add_, given, loss_of, with_gradients
from runner.optim.adam import Adam

A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic: the steepest at 0 that keeps singular values near 1


def orthogonalized(x: Tensor, steps: int) -> Tensor:
    """About U V^T of (..., m, n) = U S V^T: singular values s / |x|_F go `steps` times through A s + B s^3 + C s^5,
    which brings all that are not tiny to between 0.7 and 1.2. In bf16 on a GPU. Zeros stay zeros."""
    kind = x.dtype
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    x = x.bfloat16() if x.is_cuda else x
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return (x if wide else x.mT).to(kind)


class Muon(Adam):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the hidden matrices W (m, n), kernels of
    convolutions being (out, in h w), and AdamW for everything else: classifiers, embeddings, biases, normalisation.

        B = momentum B + (1 - momentum) grad
        W = W - lr weight_decay W - lr sqrt(max(1, m / n)) O        O = orthogonalized((1 - momentum) grad + momentum B)

    and O of B itself without `nesterov`. The orthogonalization is that of the authors' code, five steps of Newton and
    Schulz's iteration with their quintic, in bf16 on a GPU and in the weights' own precision on a CPU; every process
    does all of it. What AdamW does is in `runner.optim.adam`.

    Parameters
    ----------
    lr, momentum, nesterov, steps : of the matrices. Defaults are the authors'.
    weight_decay : of both, decoupled.
    rest_lr, betas, eps : of AdamW.

    Raises
    ------
    ValueError
        A model without hidden matrices.
    """

    split = ("matrix",)

    def __init__(
        self,
        params,
        layouts: list[Layout],
        lr: NonNegative = 0.02,
        momentum: OpenFraction = 0.95,
        nesterov: bool = True,
        steps: Count = 5,
        weight_decay: NonNegative = 0.0,
        rest_lr: NonNegative = 3e-4,
        betas: tuple[OpenFraction, OpenFraction] = (0.9, 0.95),
        eps: Positive = 1e-10,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, decoupled=True)
        self.layouts = layouts
        for group in self.param_groups:
            group |= dict(momentum=momentum, nesterov=nesterov, steps=steps)
            group["lr"] = lr if group["part"] == "matrix" else rest_lr
        if all(group["part"] != "matrix" for group in self.param_groups):
            raise ValueError(
                "muon is for hidden matrices, and this model has none: choose another, such as optim=adamw"
            )

    @torch.no_grad()
    def step(self, closure=None):
        loss = loss_of(closure)
        layouts = {id(group): layout for group, layout in zip(self.param_groups, self.layouts, strict=True)}
        for group, w in with_gradients(self):
            if group["part"] == "matrix":
                self.turn(group, w, layouts[id(group)])
            else:
                self.update(group, w)
        return loss

    def turn(self, group: dict, w: Tensor, layout: Layout) -> None:
        lr, momentum, decay, state = group["lr"], group["momentum"], group["weight_decay"], self.state[w]
        if not state:
            state["velocity"] = torch.zeros_like(w)
        v = state["velocity"].lerp_(w.grad, column(1 - momentum, w))
        u = w.grad.lerp(v, column(momentum, w)) if group["nesterov"] else v
        matrices = layout.matrices(u)
        for (m, n), x in matrices.items():
            matrices[m, n] = orthogonalized(x, group["steps"]) * max(1.0, m / n) ** 0.5
        if given(decay):
            w.mul_(column(1 - lr * decay, w))
        add_(w, layout.put(torch.zeros_like(w), matrices), -lr)
