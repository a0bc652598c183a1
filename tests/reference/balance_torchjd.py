"""Gradients that torchjd makes of random rows: `python tests/reference/balance_torchjd.py` writes them anew, with
`pip install -e ".[reference]"`; tests read the file beside this one.

torchjd draws the orders of PCGrad from torch's generator; here `torch.randperm` is what gives it numpy's, which are in
the file. Its MGDA stops after 100 steps of Frank-Wolfe and is given a million.
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".json")
CASES = [(2, 6, 0), (3, 7, 1), (5, 9, 2), (5, 4, 3)]  # rows, coordinates, seed; more rows than coordinates: dependent


def rows(count: int, size: int, seed: int) -> np.ndarray:
    """Of different lengths, and some against each other."""
    draw = np.random.Generator(np.random.Philox(seed))
    found = draw.standard_normal((count, size)) * np.exp(draw.standard_normal((count, 1)))
    found[-1] -= 1.5 * found[0]
    return found


def orders(count: int, seed: int) -> list[list[int]]:
    draw = np.random.Generator(np.random.Philox(100 + seed))
    return [draw.permutation(count).tolist() for _ in range(count)]


def write() -> None:
    from importlib.metadata import version
    from unittest import mock

    import torch
    from torchjd import aggregation

    methods = {
        "upgrad": aggregation.UPGrad(),
        "pcgrad": aggregation.PCGrad(),
        "aligned_mtl": aggregation.AlignedMTL(),
        "aligned_mtl median": aggregation.AlignedMTL(scale_mode="median"),
        "aligned_mtl rmse": aggregation.AlignedMTL(scale_mode="rmse"),
        "config": aggregation.ConFIG(),
        "mgda": aggregation.MGDA(epsilon=1e-12, max_iters=1_000_000),
    }
    cases = []
    for count, size, seed in CASES:
        drawn, found = orders(count, seed), {}
        for name, method in methods.items():
            given = iter(drawn)
            with mock.patch("torch.randperm", lambda n, given=given: torch.tensor(next(given))):
                found[name] = method(torch.from_numpy(rows(count, size, seed))).tolist()
        cases.append({"case": [count, size, seed], "orders": drawn, "gradients": found})
    versions = {name: version(name) for name in ("torchjd", "quadprog", "torch", "numpy")}
    FILE.write_text(json.dumps({"versions": versions, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    write()
