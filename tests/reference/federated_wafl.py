"""WAFL (Nguyen et al., arXiv:2206.01432): FedAvg on the Wasserstein-robust surrogate, by its authors' code.

For every local batch, with labels as they are:
    x' = x;  `steps` times:  x' <- x' + alpha * (d loss(x', y; w) / dx' - gamma * (x' - x))    each sample by itself
    w <- w - lr * d/dw mean loss(x', y; w)                                                     x' held fixed
so x' climbs loss(x') - gamma/2 * |x' - x|^2: the code has the factor 1/2. The server averages by the number of
samples.
No projection, no clipping of x', no random start. The climb is on what the model sees (inputs after normalisation).

Read: dual-grp/WAFL at 459e9cf (2022-06-23): FLAlgorithms/users/userWAFL.py, users/userbase.py (`wasssertein`),
servers/serverWAFL.py, serverbase.py, utils/options.py, README.md; the paper itself beyond its abstract was not
readable.
`climb` agrees with `wasssertein` to 1e-15 on random inputs.
options.py: gamma 0.1, steps K = 10, alpha 1, 2 local epochs, batch 64, 10 % of 100 clients, SGD without momentum at lr
0.001. The README's commands: gamma 0.05 for MNIST (pixels standardised one by one), 0.5 with lr 0.05 for CIFAR-10
(inputs in [-1, 1]), alpha 1. Since 459e9cf, after the paper, the call ignores K and alpha and climbs 10 steps of 10:
with gamma 0.5 that multiplies x' - x by -4 a step. alpha = 1 is the paper's experiments as the README gives them.
Left out: the code ends the climb when the gradient of the batch's mean objective is shorter than 1e-4, after that
step.
Not settled: gamma as a function of the ball's radius (the code has gamma alone), and the paper's distance (the 1/2).
The use for domain adaptation (serverDA.py) is FedAvg with weights from a distance between data sets; it is not this.
"""

import numpy as np


def climb(x, gradient, gamma, alpha, steps):
    """x' for one sample; `gradient` is that of its loss by its input."""
    moved = np.array(x, dtype=np.float64)
    for _ in range(steps):
        moved = moved + alpha * (gradient(moved) - gamma * (moved - x))
    return moved


def probabilities(w, b, x):
    z = w @ x + b
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def input_gradient(w, b, x, y):
    """Of softmax regression's cross-entropy with weights w (C, D) and biases b (C,)."""
    return w.T @ (probabilities(w, b, x) - np.eye(len(b))[y])


def local(w, b, batches, lr, gamma=0.1, alpha=1.0, steps=10):
    """Softmax regression after one step of SGD for every batch [(x, y), ...]."""
    for batch in batches:
        dw, db = np.zeros_like(w), np.zeros_like(b)
        for x, y in batch:
            moved = climb(x, lambda v, w=w, b=b, y=y: input_gradient(w, b, v, y), gamma, alpha, steps)
            error = probabilities(w, b, moved) - np.eye(len(b))[y]
            dw, db = dw + np.outer(error, moved) / len(batch), db + error / len(batch)
        w, b = w - lr * dw, b - lr * db
    return w, b


def server(locals_, sizes):
    """The next global weights: arrays averaged by the number of samples."""
    return sum(n / sum(sizes) * y for y, n in zip(locals_, sizes, strict=True))
