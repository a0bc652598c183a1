"""LegendreTron: a learned link."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import Count
from runner.loss import Loss
from runner.loss.ce import CrossEntropy


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
        self.entropy = CrossEntropy()
        self.blocks = nn.ModuleList(Potential(classes - 1, hidden, depth) for _ in range(blocks))

    def head(self, out: Output) -> Output:
        logits = wide(out.logits)
        scores, last = logits.split([logits.shape[-1] - 1, 1], -1)
        scores = scores - last
        for block in self.blocks:
            scores = block(scores)
        return replace(out, logits=F.log_softmax(F.pad(scores, (0, 1)), -1))

    def forward(self, out: Output, batch: Batch) -> Tensor:
        return self.entropy(out, batch)


class Potential(nn.Module):
    """The gradient of softplus(w1) g(x) + softplus(w0) ||x||^2 / 2 for x (..., D), written out layer by layer.

        z_0 = softplus(W_0 x + b_0)
        z_l = (softplus(N_l(softplus(P_l) z_{l-1} / H + U_l x)), softplus(V_l x)),   l = 1 .. depth - 1
        g = N(softplus(P) z / H + q x),   N(a) = (e^r + 0.001) (a + b)

    U_l, V_l, W_0 and P_l have biases; H is the width of z. softplus(P) >= 0 and the activations are convex and
    increasing, so that g is convex (Amos et al., ICML 2017, arXiv:1609.07152). Written out, the gradient is one pass of
    plain operations, which evaluation and vmap take as it is. Their number is what costs time, so each is of all
    layers where it can be: with V_l x, which stands alone, go rows of zeros for P_l and the factor 1 for N_l.
    """

    def __init__(self, size: int, hidden: int, depth: int):
        super().__init__()
        half = hidden // 2
        self.outer = nn.Linear(size, depth * hidden)  # W_0, then U_l and V_l by turns
        self.inner = nn.Linear(hidden, (depth - 1) * half + 1, bias=False)  # P_l, and last P
        self.bias = nn.Parameter(torch.empty(depth - 1, half).uniform_(-1, 1) * hidden**-0.5)  # of P_l, as of a Linear
        self.shift = nn.Parameter(torch.zeros(depth - 1, half))  # b of N_l
        self.scale = nn.Parameter(torch.zeros((depth - 1) * half + 1))  # r of N_l, and last of N
        self.skip = nn.Linear(size, 1, bias=False)  # q
        self.w1, self.w0 = nn.Parameter(torch.randn(1)), nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        (inner, half), width = self.bias.shape, self.inner.in_features
        count = [inner * half, 1]
        factor = self.scale.exp() + 0.001
        positive, last = (F.softplus(self.inner.weight) * (factor / width).unsqueeze(-1)).split(count)
        factor, top = factor.split(count)
        factor = F.pad(factor.view(inner, half), (0, half, 1, 0), value=1.0).flatten()
        shift = F.pad(torch.add(self.shift, self.bias, alpha=1 / width), (0, half, 1, 0)).flatten()
        outer = self.outer.weight * factor.unsqueeze(-1)
        begin, *rest = F.linear(x, outer, (self.outer.bias + shift) * factor).unflatten(-1, (-1, width)).unbind(-2)
        matrices = F.pad(positive.view(inner, half, width), (0, 0, 0, half)).unbind()
        layers = [begin]
        for matrix, other in zip(matrices, rest, strict=True):
            layers.append(F.linear(F.softplus(layers[-1]), matrix) + other)
        weight = F.softplus(self.w1)
        slopes = [weight * last.squeeze(0) * layers[-1].sigmoid()]
        for matrix, layer in zip(reversed(matrices), reversed(layers[:-1]), strict=True):
            slopes.append(slopes[-1] @ matrix * layer.sigmoid())
        slope = torch.cat(slopes[::-1], -1) @ outer + weight * top * self.skip.weight.squeeze(0)
        return slope + F.softplus(self.w0) * x
