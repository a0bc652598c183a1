"""Gaussian negative log-likelihood (Nix & Weigend 1994): minus the logarithm of the density, the mean over a sample's
targets. The first half of the outputs are means, the second half goes through softplus to variances."""

import numpy as np

SETTINGS = [{}]
TARGETS = ("real", "reals")
OUTPUTS = 2  # for every target


def reference(logits, y):
    losses = []
    for outputs, targets in zip(logits, y, strict=True):
        targets = np.atleast_1d(targets)
        means, raw = outputs[: len(targets)], outputs[len(targets) :]
        total = 0.0
        for target, mean, a in zip(targets, means, raw, strict=True):
            deviation = np.sqrt(np.logaddexp(0, a) + 1e-6)
            total += np.log(deviation * np.sqrt(2 * np.pi)) + ((target - mean) / deviation) ** 2 / 2
        losses.append(total / len(targets))
    return np.array(losses)
