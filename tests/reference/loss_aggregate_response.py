"""Bag-level and instance-level squared error (Javanmard et al., arXiv:2401.11081), one bag at a time."""

import numpy as np

SETTINGS = [{}, {"rho": 0.0}, {"rho": 1.0}, {"rho": 0.2}]
TARGETS = ("ids", "soft", "real")
COUPLED = True


def reference(logits, y, index, bag, rho=0.5):
    logits, losses = np.asarray(logits), np.zeros(len(y))
    for i in range(len(y)):
        members = [j for j in range(len(y)) if index[j] // bag == index[i] // bag]
        if logits.shape[1] == 1:
            target, f = [y[i]], logits
        else:
            target = y[i] if np.ndim(y[i]) else np.eye(logits.shape[1])[y[i]]
            f = np.array([np.exp(z) / np.exp(z).sum() for z in logits])
        for c in range(logits.shape[1]):
            mean = sum(f[j, c] for j in members) / len(members)
            losses[i] += (1 - rho) * (target[c] - mean) ** 2 + rho * (target[c] - f[i, c]) ** 2
    return losses
