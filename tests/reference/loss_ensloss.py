"""EnsLoss (Dai, arXiv:2409.00908), one batch: loss derivatives from the inverse Box-Cox transformation, in the order of
the margins, which are held."""

import numpy as np
import torch

from runner.loss.ensloss import normal

CLASSES = 2
COUPLED = True
SETTINGS = [{}, {"lam": 0.5}, {"lam": 1.0}, {"lam": -0.7}]


def inverse_box_cox(n, lam):
    if lam == 0:
        return np.exp(n)
    inside = max(1 + lam * n, 0.0)
    return np.inf if inside == 0 and lam < 0 else inside ** (1 / lam)


def margins(logits, y):
    signs = [2 * target[1] - 1 if np.ndim(target) else 2 * target - 1 for target in y]
    return [sign * (z[1] - z[0]) for sign, z in zip(signs, logits, strict=True)]


def reference(logits, y, state, index, held, lam=0.0):
    s = margins(held, y)
    drawn = sorted(-inverse_box_cox(float(n), lam) for n in state["draws"][index])
    g = [0.0] * len(s)
    for rank, i in enumerate(sorted(range(len(s)), key=lambda i: s[i])):
        g[i] = max(drawn[rank], -1.0)
        if s[i] > 1:
            g[i] *= 1 / s[i]
        g[i] -= 1e-6
    return np.array([gi * margin for gi, margin in zip(g, margins(logits, y), strict=True)])


def observed(state, logits, y, index, lam=0.0):
    """Keys count up. What a key gives is any normal number: that it is one is tested in test_loss.py."""
    keys, draws = state["keys"].copy(), state["draws"].copy()
    keys[index] += 1
    draws[index] = normal(torch.from_numpy(keys[index])).numpy()
    return {"keys": keys, "draws": draws}
