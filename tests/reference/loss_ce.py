"""Cross-entropy with label smoothing (Szegedy et al., arXiv:1512.00567), one sample at a time."""

import numpy as np

SETTINGS = [{}, {"label_smoothing": 0.1}, {"label_smoothing": 0.7}]


def reference(logits, y, label_smoothing=0.0):
    losses = []
    for z, target in zip(np.asarray(logits), y, strict=True):
        classes = len(z)
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        loss = 0.0
        for c in range(classes):
            q = target[c] if np.ndim(target) else float(c == target)
            loss -= ((1 - label_smoothing) * q + label_smoothing / classes) * np.log(p[c])
        losses.append(loss)
    return np.array(losses)
