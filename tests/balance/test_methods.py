"""What a balance makes of rows: torchjd's numbers, the papers' definitions, and what every method keeps."""

import itertools
import json
import sys

import numpy as np
import pytest
import torch
import yaml
from scipy.optimize import nnls

from runner.command.build import build
from runner.command.listing import conf_dir, options
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "reference"))
from balance_torchjd import CASES, FILE, rows  # noqa: E402

KNOWN = json.loads(FILE.read_text())["cases"]
OPTIONS = sorted(option for option in options("balance", [conf_dir()]) if option != "none")


def made(option: str, **settings):
    node = yaml.safe_load((conf_dir() / "balance" / f"{option}.yaml").read_text())
    return build({**node, **settings}, "balance")


class Given:
    """A generator whose permutations are these."""

    def __init__(self, orders):
        self.left = iter(orders)

    def permutation(self, count):
        return np.array(next(self.left))


def draws(count: int, seed: int = 0) -> list:
    return [np.random.default_rng([seed, k]) for k in range(count)]


def gradient(balance, matrix, given=None) -> torch.Tensor:
    """(P,) of (T, P), or (K, P) of (K, T, P)."""
    matrix = torch.as_tensor(matrix)
    whole = matrix if matrix.dim() == 3 else matrix.unsqueeze(0)
    values = torch.arange(1.0, 1.0 + whole.shape[1], dtype=whole.dtype).expand(len(whole), -1)
    found = balance.combine(whole, (whole @ whole.mT).double(), values, given or draws(len(whole)))
    return found if matrix.dim() == 3 else found[0]


# torchjd's own scale is the sum of T rows where ours is their mean
TIMES = {"pcgrad": True, "config": True}


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: str(known["case"]))
@pytest.mark.parametrize("name", KNOWN[0]["gradients"])
def test_torchjd_gives_the_same(name, known):
    option, _, scale = name.partition(" ")
    matrix = rows(*known["case"])
    balance = made(option, **({"scale": scale} if scale else {}))
    found = gradient(balance, matrix, [Given(known["orders"])]) * (len(matrix) if TIMES.get(option) else 1)
    assert len(matrix) == known["case"][0] and (matrix @ matrix.T).min() < 0
    exact = 1e-9 if option != "mgda" else 1e-3  # which torchjd approaches by steps
    expected = np.array(known["gradients"][name])
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=exact * np.abs(matrix).max())


def by_the_paper(matrix: np.ndarray, orders) -> np.ndarray:
    """PCGrad's algorithm 1 on the vectors."""
    projected = matrix.copy()
    for i, order in enumerate(orders):
        for j in order:
            if j != i and (along := projected[i] @ matrix[j]) < 0:
                projected[i] = projected[i] - along / (matrix[j] @ matrix[j]) * matrix[j]
    return projected.sum(0) / len(matrix)


@pytest.mark.parametrize("case", CASES)
def test_pcgrad_is_the_algorithm_and_its_order_matters(case):
    matrix, found = rows(*case), []
    for seed in range(4):
        orders = [np.random.default_rng([seed, i]).permutation(len(matrix)) for i in range(len(matrix))]
        found.append(by_the_paper(matrix, orders))
        assert gradient(made("pcgrad"), matrix, [Given(orders)]).numpy() == pytest.approx(found[-1], abs=1e-12)
    assert case[0] < 5 or not np.allclose(found[0], found[1])


def dual_cone(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """The projection of a vector onto {u : J u >= 0}: over every set of rows that it may touch, the best that is in."""
    best = None
    for size in range(len(matrix) + 1):
        for touched in itertools.combinations(range(len(matrix)), size):
            own = matrix[list(touched)]
            point = vector - np.linalg.pinv(own) @ (own @ vector) if size else vector
            off = np.linalg.norm(point - vector)
            if (matrix @ point >= -1e-9).all() and (best is None or off < best[0]):
                best = off, point
    return best[1]


@pytest.mark.parametrize("case", CASES[:3])
def test_upgrad_projects_onto_the_dual_cone(case, monkeypatch):
    monkeypatch.setattr("runner.balance.upgrad.REGULAR", 1e-13)  # as the paper has it
    matrix = rows(*case)
    expected = np.mean([dual_cone(matrix, row) for row in matrix], 0)
    assert not np.allclose(expected, matrix.mean(0))
    assert gradient(made("upgrad"), matrix).numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("case", CASES[:3])
def test_aligned_rows_are_orthogonal_and_equally_long(case):
    """B J has the singular vectors of J, and its smallest singular value for all of them."""
    matrix = rows(*case)
    left, size, right = np.linalg.svd(matrix, full_matrices=False)
    assert gradient(made("aligned_mtl"), matrix).numpy() == pytest.approx((size.min() * left @ right).mean(0), abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_mgda_is_the_shortest_and_no_row_is_below_it(case):
    matrix = rows(*case)
    found = gradient(made("mgda"), matrix).numpy()
    assert (matrix @ found >= found @ found - 1e-9).all()  # the optimality condition of a point between the rows
    off = nnls(np.vstack([matrix.T, np.ones(len(matrix))]), np.append(found, 1.0))[1]
    assert off < 1e-9  # it is one


def test_two_rows_by_hand():
    """Of lengths 1 and 2 at 120 degrees."""
    matrix = np.array([[1.0, 0.0], [-1.0, 3**0.5]])
    a, b = matrix
    across = {"pcgrad": (a + a @ -b / 4 * b + b - a @ b * a) / 2}
    across["config"] = (lambda d: (matrix @ d).mean() * d)((a + b / 2) / np.linalg.norm(a + b / 2))  # the bisector
    share = (b - a) @ b / ((b - a) @ (b - a))
    across["mgda"] = share * a + (1 - share) * b
    for option, expected in across.items():
        assert gradient(made(option), matrix).numpy() == pytest.approx(expected, abs=1e-12), option


# ---- what all keep

ROWS = torch.from_numpy(rows(3, 8, 7))


@pytest.mark.parametrize("option", OPTIONS)
def test_one_row_is_the_gradient(option):
    assert torch.allclose(gradient(made(option), ROWS[:1]), ROWS[0], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("option", OPTIONS)
def test_equal_rows_are_the_gradient(option, dtype):
    same = ROWS[:1].expand(3, -1).to(dtype)
    assert torch.allclose(gradient(made(option), same), same[0], atol=1e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("option", OPTIONS)
def test_rows_that_are_orthogonal_and_equally_long_give_their_mean(option):
    matrix = 2.0 * torch.eye(3, 8, dtype=torch.float64)
    assert torch.allclose(gradient(made(option), matrix), matrix.mean(0), atol=1e-12)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_order_of_objectives_changes_nothing(option):
    """Of PCGrad with two: its own order is random."""
    matrix = ROWS[[0, 2]] if option == "pcgrad" else ROWS
    assert (matrix @ matrix.T).min() < 0 or option != "pcgrad"
    assert torch.allclose(gradient(made(option), matrix.flip(0)), gradient(made(option), matrix), atol=1e-9)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_rotation_of_the_weights_rotates_the_gradient(option):
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    assert torch.allclose(gradient(made(option), ROWS @ turn), gradient(made(option), ROWS) @ turn, atol=1e-9)


@pytest.mark.parametrize("option", OPTIONS)
def test_runs_side_by_side_are_each_by_itself(option):
    matrix = torch.stack([ROWS, 3 * ROWS.flip(-1), torch.from_numpy(rows(3, 8, 11))])
    given = draws(3)
    together = gradient(made(option), matrix)
    for k, own in enumerate(matrix):
        assert torch.allclose(gradient(made(option), own, given[k : k + 1]), together[k], atol=1e-12)


@pytest.mark.parametrize("option", OPTIONS)
def test_rows_of_zeros_are_no_trouble(option):
    assert gradient(made(option), torch.zeros(3, 8)).eq(0).all()
    found = gradient(made(option), torch.cat([ROWS[:2], torch.zeros(1, 8, dtype=ROWS.dtype)]))
    share = 1 if option == "mgda" else 2 / 3  # a convex combination; the others are means over all three
    assert torch.allclose(found, share * gradient(made(option), ROWS[:2]), atol=1e-3 * found.norm().item())


@pytest.mark.parametrize("option", ["upgrad", "mgda", "config"])
def test_no_objective_rises(option):
    for seed in range(20):
        matrix = torch.from_numpy(rows(4, 12, seed))
        assert (matrix @ gradient(made(option), matrix)).min() > -1e-3 * matrix.square().sum()
