"""LegendreTron: a learned link."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.batch import Batch, Output
from runner.loss import Loss, soft_targets, wide
from runner.schema import Count


class LegendreTron(Loss):
    """LegendreTron: a canonical link learned with the model (Lam et al., ICML 2023, arXiv:2301.11695).

        L = -log p_y,   p = softmax+(v(s)),   softmax+(u) = softmax of (u_1 .. u_{C-1}, 0)
        v = f_blocks o ... o f_1,   f_b = grad of  softplus(w1) g_b(x) + softplus(w0) ||x||^2 / 2

    s are C - 1 scores and g_b is an input-convex network (see `Potential`), so that every f_b is the gradient of a
    strictly convex function and can be inverted: -log p_y is a proper composite loss of s, whatever the weights. They
    are trained with the model's. The structure is that of the authors' code (khflam/legendretron, lib/models.py and
    lib/icnn.py); it was not compared with the text of the paper.

    Here s_c = z_c - z_C of the model's C logits, and log p is what a run is measured by. The code sets the
    normalisation layers of g_b by the first batch it sees; here they begin as the identity (but for the code's 0.001).
    The code adds weight_decay / 2 times the squared norm of all weights to the loss, which is the weight decay of SGD
    and of Adam. y is the one-hot target or a soft one. Logits (..., C) and targets (...) or (..., C) give (...).

    Parameters
    ----------
    hidden : width of g_b, even. Default 4. depth : its hidden layers. Default 4. blocks : default 1. They are those of
        the code's MNIST experiments; those on tables have 2, 4 and 2.
    classes : from the data set.
    """

    def __init__(self, hidden: Count = 4, depth: Count = 4, blocks: Count = 1, *, classes: int):
        super().__init__()
        if hidden % 2:
            raise ValueError(f"loss.hidden={hidden}: must be even, half of a layer comes from the layer before")
        if classes < 2:
            raise ValueError("loss=legendretron needs two classes or more")
        self.blocks = nn.ModuleList(Potential(classes - 1, hidden, depth) for _ in range(blocks))

    def head(self, out: Output) -> Output:
        logits = wide(out.logits)
        scores = logits[..., :-1] - logits[..., -1:]
        for block in self.blocks:
            scores = block(scores)
        return Output(F.log_softmax(F.pad(scores, (0, 1)), -1), out.features)

    def forward(self, out: Output, batch: Batch) -> Tensor:
        logits = wide(out.logits)
        return -(soft_targets(batch.y, logits) * F.log_softmax(logits, -1)).sum(-1)


class Potential(nn.Module):
    """The gradient of softplus(w1) g(x) + softplus(w0) ||x||^2 / 2 for x (..., D), written out layer by layer.

        z_0 = softplus(W_0 x + b_0)
        z_l = (softplus(N_l(softplus(P_l) z_{l-1} / H + U_l x)), softplus(V_l x)),   l = 1 .. depth - 1
        g = N(softplus(P) z / H + q x),   N(a) = (e^r + 0.001) (a + b)

    U_l, V_l, W_0 and P_l have biases; H is the width of z. softplus(P) >= 0 and the activations are convex and
    increasing, so that g is convex (Amos et al., ICML 2017, arXiv:1609.07152). Written out, the gradient is one pass of
    plain operations, which evaluation and vmap take as it is.
    """

    def __init__(self, size: int, hidden: int, depth: int):
        super().__init__()
        half = hidden // 2
        self.first = nn.Linear(size, hidden)
        self.inner = nn.ModuleList(nn.Linear(hidden, half) for _ in range(depth - 1))  # P_l
        self.across = nn.ModuleList(nn.Linear(size, half) for _ in range(depth - 1))  # U_l
        self.beside = nn.ModuleList(nn.Linear(size, half) for _ in range(depth - 1))  # V_l
        self.last = nn.Linear(hidden, 1, bias=False)  # P
        self.skip = nn.Linear(size, 1, bias=False)  # q
        self.shift = nn.ParameterList(torch.zeros(half) for _ in range(depth - 1))  # b of N_l
        self.scale = nn.ParameterList([*(torch.zeros(half) for _ in range(depth - 1)), torch.zeros(1)])  # r
        self.w1, self.w0 = nn.Parameter(torch.randn(1)), nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        width = self.first.out_features
        begin = self.first(x)
        z, layers = F.softplus(begin), []
        *scales, top = self.scale  # not a slice, which would be a copy that is not trained
        for inner, across, beside, shift, scale in zip(
            self.inner, self.across, self.beside, self.shift, scales, strict=True
        ):
            positive, factor = F.softplus(inner.weight) / width, scale.exp() + 0.001
            here = factor * (F.linear(z, positive, inner.bias / width) + across(x) + shift)
            other = beside(x)
            z = torch.cat([F.softplus(here), F.softplus(other)], -1)
            layers.append((here, other, positive, factor, across, beside))
        factor = top.exp() + 0.001
        slope = factor * self.skip.weight.squeeze(0)
        back = (factor * F.softplus(self.last.weight.squeeze(0)) / width).expand_as(z)
        for here, other, positive, factor, across, beside in reversed(layers):
            first, second = back.chunk(2, -1)
            first, second = first * here.sigmoid() * factor, second * other.sigmoid()
            slope = slope + first @ across.weight + second @ beside.weight
            back = first @ positive
        slope = slope + (back * begin.sigmoid()) @ self.first.weight
        return F.softplus(self.w1) * slope + F.softplus(self.w0) * x
