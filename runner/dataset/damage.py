"""Damage on purpose: label noise and long tails, as functions of a generator."""

import numpy as np
import torch
from torch import Tensor


def long_tail(y: Tensor, classes: int, ratio: float, draw: np.random.Generator) -> Tensor:
    """Indices, in order, of the samples that an exponential long tail keeps (Cui et al. 2019, arXiv:1901.05555).

    Class c of C keeps floor(n_max * ratio^(-c / (C - 1))) samples, at least one; n_max is the largest number for which
    every class has enough samples. Raises ValueError where a class has no sample.
    """
    y = y.numpy()
    shares = ratio ** (-np.arange(classes) / max(classes - 1, 1))
    counts = np.bincount(y, minlength=classes)
    if counts.min() == 0:
        raise ValueError(f"dataset.imbalance needs samples of every class, and class {counts.argmin()} has none")
    largest = (counts / shares).min()
    sizes = np.maximum(np.floor(largest * shares + 1e-6), 1).astype(int)  # 1e-6: 49.9999999 is a rounding of 50
    kept = [draw.permutation(np.flatnonzero(y == label))[:size] for label, size in enumerate(sizes)]
    return torch.from_numpy(np.sort(np.concatenate(kept)))


def _redraw(y: Tensor, other: np.ndarray, rate: float, draw: np.random.Generator) -> Tensor:
    return torch.where(torch.from_numpy(draw.random(len(y)) < rate), torch.from_numpy(other), y)


def symmetric(y: Tensor, classes: int, rate: float, draw: np.random.Generator, mapping=None) -> Tensor:
    """With probability `rate`, any class, uniformly, the true one included: a part rate * (C - 1) / C changes."""
    return _redraw(y, draw.integers(0, classes, len(y)), rate, draw)


def symmetric_other(y: Tensor, classes: int, rate: float, draw: np.random.Generator, mapping=None) -> Tensor:
    """With probability `rate`, any class but the true one, uniformly."""
    return _redraw(y, (y.numpy() + draw.integers(1, classes, len(y))) % classes, rate, draw)


def pair(y: Tensor, classes: int, rate: float, draw: np.random.Generator, mapping=None) -> Tensor:
    """With probability `rate`, the next class, c -> c + 1 mod C (Han et al. 2018, arXiv:1804.06872)."""
    return _redraw(y, (y.numpy() + 1) % classes, rate, draw)


def asymmetric(y: Tensor, classes: int, rate: float, draw: np.random.Generator, mapping: dict[int, int]) -> Tensor:
    """With probability `rate`, the class that `mapping` gives (Patrini et al. 2017, arXiv:1609.03683)."""
    table = np.arange(classes)
    for old, new in mapping.items():
        if not (0 <= old < classes and 0 <= new < classes):
            raise ValueError(f"dataset.asymmetric maps {old} to {new}, and the classes are 0..{classes - 1}")
        table[old] = new
    return _redraw(y, table[y.numpy()], rate, draw)


KINDS = {"symmetric": symmetric, "symmetric_other": symmetric_other, "pair": pair, "asymmetric": asymmetric}
