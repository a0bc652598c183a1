"""AdaQuant (arXiv:2006.10518) in numpy: a linear layer's calibration, BatchNorm tuned, the tuning's divergence."""

import numpy as np


class Adam:
    """Kingma and Ba, ICLR 2015, algorithm 1."""

    def __init__(self, rate: float):
        self.rate, self.m, self.v, self.t = rate, 0.0, 0.0, 0

    def step(self, gradient):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        return -self.rate * (self.m / (1 - 0.9**self.t)) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)


def on_grid(x, width, low, bits):
    """x^ of a grid of this width, its derivative by x, and by the width, straight through the rounding."""
    steps = 2**bits - 1
    v = x * steps / width
    level = np.clip(np.round(v), low, low + steps)
    inside = (v > low) & (v < low + steps)
    return level * width / steps, inside, np.where(inside, level - v, level) / steps


def calibrate(x, wanted, w, b, wide_w, low_w, wide_x, low_x, bits, steps, rectify, rates):
    """Full batches; x (N, I), wanted (N, O), w (O, I), b (O,); one grid for each row of w, one for x."""
    names = ("w", "b", "wide_w", "wide_x")
    now = dict(zip(names, (w, b, wide_w, wide_x), strict=True))
    adam = {name: Adam(rate) for name, rate in zip(names, rates, strict=True)}
    wanted = np.maximum(wanted, 0) if rectify else wanted
    for _ in range(steps):
        wq, w_in, w_by_width = on_grid(now["w"], now["wide_w"], low_w, bits)
        xq, _, x_by_width = on_grid(x, now["wide_x"], low_x, bits)
        y = xq @ wq.T + now["b"]
        by_y = 2 * ((np.maximum(y, 0) if rectify else y) - wanted) / y.size
        by_y = by_y * (y > 0) if rectify else by_y
        by_w = by_y.T @ xq
        gradient = {
            "w": by_w * w_in,
            "b": by_y.sum(0),
            "wide_w": (by_w * w_by_width).sum(1, keepdims=True),
            "wide_x": ((by_y @ wq) * x_by_width).sum(),
        }
        now = {name: now[name] + adam[name].step(gradient[name]) for name in names}
    return now


def normalized(batches, w, b, scale, shift):
    """One layer, x -> w x + b, whose BatchNorm was folded: (w, b, its outputs for the next layer) after the tuning."""
    mean, var, wide = shift, scale**2, np.sqrt(scale**2 + 1e-5)
    out = []
    for x in batches:
        y = x @ w.T + b
        out.append((y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5) * wide + shift)
        mean = 0.9 * mean + 0.1 * y.mean(0)
        var = 0.9 * var + 0.1 * y.var(0, ddof=1)
    factor = wide / np.sqrt(var + 1e-5)
    return w * factor[:, None], (b - mean) * factor + shift, out


def divergence(wanted, found):
    """KL of the softmax, averaged over samples and classes."""
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (wanted, found))
    return (p * np.log(p / q)).mean()
