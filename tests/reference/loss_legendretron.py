"""LegendreTron (Lam et al., arXiv:2301.11695): its link makes log-probabilities of the scores, and the loss is the
cross-entropy with them. The link is tested in tests/loss/test_heads.py."""

import numpy as np

SETTINGS = [{}, {"hidden": 2, "depth": 1, "blocks": 2}]


def reference(logits, y, hidden=4, depth=4, blocks=1):
    losses = []
    for z, target in zip(np.asarray(logits), y, strict=True):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        losses.append(-(target * np.log(p)).sum() if np.ndim(target) else -np.log(p[target]))
    return np.array(losses)
