"""AnyLoss (Han et al., arXiv:2405.14745), the confusion matrix filled one sample at a time and the metrics in the
closed forms that the authors' code has: of the sums of y, of the hardened probabilities and of their product."""

import numpy as np

CLASSES = 2
SETTINGS = [
    {},
    {"beta": 2.0, "L": 5.0},
    {"metric": "accuracy", "positive": 0},
    {"metric": "g_mean", "L": 10.0},
    {"metric": "balanced_accuracy"},
]
COUPLED = True


def reference(logits, y, metric="f_beta", L=73.0, beta=1.0, positive=1):
    n, sy, sh, syh = len(logits), 0.0, 0.0, 0.0
    for z, target in zip(np.asarray(logits), y, strict=True):
        p = np.exp(z[positive]) / np.exp(z).sum()
        hard = 1 / (1 + np.exp(-L * (p - 0.5)))
        label = target[positive] if np.ndim(target) else float(target == positive)
        sy, sh, syh = sy + label, sh + hard, syh + label * hard
    value = {
        "accuracy": (n - sy - sh + 2 * syh) / n,
        "f_beta": (1 + beta**2) * syh / (beta**2 * sy + sh),
        "g_mean": np.sqrt(syh * (n - sh - sy + syh) / (sy * (n - sy))),
        "balanced_accuracy": (n * (syh + sy) - sy * (sh + sy)) / (2 * sy * (n - sy)),
    }[metric]
    return np.full(n, 1 - value)
