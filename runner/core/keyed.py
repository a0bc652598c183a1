"""Randomness keyed by what it is for, never by worker, batch position or call order.

Two kinds: a generator for a whole draw (the order of an epoch, a split, label noise), and a counter-based hash that
gives every training sample its own numbers in every epoch, in one vectorised call and on any device alike.
"""

import zlib
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def _key(seed: int, purpose: str, *keys: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *keys])


def generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A numpy generator of its own for (seed, purpose, keys)."""
    return np.random.Generator(np.random.Philox(_key(seed, purpose, *keys)))


def of_client(seed: int, client: int) -> int:
    """The seed of what belongs to a client of a federation and not to a sample; the first one has the plain run's."""
    return seed + (client << 32)


# splitmix64 (Steele, Lea, Flood 2014): its increment and the multipliers of its finaliser; STRIDE is another odd number
INCREMENT, FIRST, SECOND, STRIDE = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD1342543DE82EF95


def _signed(value: int) -> int:
    """A 64-bit pattern as torch's int64 reads it."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_torch(x: Tensor) -> Tensor:
    """The finaliser on int64: multiplication wraps around, and a mask makes the arithmetic shift a logical one."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(FIRST)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(SECOND)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _mix_numpy(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, purpose: str, epoch: int, index: Tensor, count: int) -> Tensor:
    """(B, count) float32 numbers in [0, 1) that depend on (seed, purpose, epoch, index) alone.

    index: (B,) int64 sample indices, on any device; the same numbers come out on every device, bit for bit. Two rounds
    of the mixer, so that neighbouring indices and columns are unrelated; 24 bits each.
    """
    base = _base(seed, purpose, epoch)
    if index.device.type == "cpu":  # numpy's small operations cost a third of torch's, and batches are small
        return torch.from_numpy(_uniform_numpy(base, index.numpy(), count))
    return _uniform_torch(base, index, count)


def _uniform_numpy(base: int, index: np.ndarray, count: int) -> np.ndarray:
    columns = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(INCREMENT)
    state = _mix_numpy(index.view(np.uint64) * np.uint64(STRIDE) + np.uint64(base))
    bits = _mix_numpy(state[:, None] + columns) >> np.uint64(40)
    return bits.astype(np.float32) * np.float32(2.0**-24)


def _uniform_torch(base: int, index: Tensor, count: int) -> Tensor:
    columns = torch.arange(1, count + 1, device=index.device) * _signed(INCREMENT)
    state = _mix_torch(index * _signed(STRIDE) + _signed(base))
    bits = (_mix_torch(state[:, None] + columns) >> 40) & ((1 << 24) - 1)
    return bits.float() * 2.0**-24


@lru_cache(maxsize=64)
def _base(seed: int, purpose: str, epoch: int) -> int:
    return int(_key(seed, purpose, epoch).generate_state(1, np.uint64)[0])
