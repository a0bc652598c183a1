"""Randomness keyed by what it is for, never by worker, batch position or call order.

Two kinds: a generator for a whole draw (the order of an epoch, a split, label noise), and a counter-based hash that
gives every training sample its own numbers in every epoch, in one vectorised call and on any device alike.
"""

import zlib

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def _key(seed: int, purpose: str, *keys: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *keys])


def generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A numpy generator of its own for (seed, purpose, keys)."""
    return np.random.Generator(np.random.Philox(_key(seed, purpose, *keys)))


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), on int64 read as uint64: wrap-around, logical shifts."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniform(seed: int, purpose: str, epoch: int, index: Tensor, count: int) -> Tensor:
    """(B, count) float32 numbers in [0, 1) that depend on (seed, purpose, epoch, index) alone.

    index: (B,) int64 sample indices, on any device; the same numbers come out on every device, bit for bit.
    """
    base = int(_key(seed, purpose, epoch).generate_state(1, np.uint64)[0])
    # one odd multiplier per use of a counter, then two rounds: neighbouring indices and columns are unrelated
    columns = torch.arange(1, count + 1, device=index.device) * _signed(0x9E3779B97F4A7C15)
    state = _mix(index * _signed(0xD1342543DE82EF95) + _signed(base))
    bits = _mix(state[:, None] + columns)
    return ((bits >> 40) & ((1 << 24) - 1)).float() * 2.0**-24
