"""LittleBit (Lee et al., arXiv:2506.13771) as its published code starts and applies a layer."""

import numpy as np


def dual_svid(w, rank):
    left, values, right = np.linalg.svd(w)
    root = np.diag(np.sqrt(values[:rank]))
    u, v = left[:, :rank] @ root, root @ right[:rank]
    pairs = []
    for factor in (u, v):
        p, s, q = np.linalg.svd(np.abs(factor))
        side = np.sign(p[0, 0])  # both vectors of a matrix that is nowhere negative have one sign
        pairs += [side * p[:, 0] * np.sqrt(s[0]), side * q[0] * np.sqrt(s[0])]
    return u, v, *pairs


def product(u, v, u1, u2, v1, v2):
    return (np.sign(u) * np.outer(u1, u2)) @ (np.sign(v) * np.outer(v1, v2))


def start(w, rank, residual):
    parts = [dual_svid(w, rank)]
    if residual:
        parts.append(dual_svid(w - product(*parts[0]), rank))
    return parts


def forward(x, parts):
    """((((x * v2) sign(V)^T) * (v1 * u2)) sign(U)^T) * u1, for one vector."""
    return sum((((x * v2) @ np.sign(v).T * (v1 * u2)) @ np.sign(u).T) * u1 for u, v, u1, u2, v1, v2 in parts)
