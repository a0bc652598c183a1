"""Spectral risks: the solver against the papers' code as transcribed, and Prospect's memory step by step."""

from itertools import islice

import numpy as np
import pytest
import torch

from runner.command.build import build
from runner.core.batch import Batch
from runner.core.mistake import ConfigError
from runner.risk.spectral import Spectral
from runner.risk.top_k import TopK
from tests.reference.risk_spectral import spectrum_of
from tests.tiny import SMALL, trainer


def pooled(losses: np.ndarray, spectrum: np.ndarray, nu: float) -> np.ndarray:
    """q by pool-adjacent-violators, as get_smooth_weights of the authors' code computes it."""
    n = len(losses)
    order, scaled = np.argsort(losses), np.sort(losses) / (nu * n)
    blocks = []  # [mean, count]
    for value in scaled + 1 / n - spectrum:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, count = blocks.pop()
            before, number = blocks[-1]
            blocks[-1] = [(mean * count + before * number) / (count + number), count + number]
    q = np.empty(n)
    q[order] = scaled - np.concatenate([[mean] * count for mean, count in blocks]) + 1 / n
    return q


@pytest.mark.parametrize(
    ("spectrum", "r"), [("extremile", 2.0), ("extremile", 5.0), ("superquantile", 0.5), ("esrm", 1.0)]
)
@pytest.mark.parametrize("nu", [1.0, 0.1, 0.01])
def test_both_solvers_are_the_papers(spectrum, r, nu):
    n = 50
    losses = torch.rand(n, dtype=torch.float64) * 3
    expected = n * pooled(losses.numpy(), np.array(spectrum_of(n, spectrum, r)), nu)
    risk = Spectral(n, spectrum, r, nu)
    np.testing.assert_allclose(risk.worst(losses).numpy(), expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(risk.solved(losses).numpy(), expected, rtol=0, atol=1e-11)
    assert risk.worst(losses.float()).numpy() == pytest.approx(expected, rel=0, abs=1e-3)


def test_known_cases():
    losses = torch.rand(8, dtype=torch.float64)
    batch = Batch(torch.zeros(8, 1), torch.zeros(8), torch.arange(8))
    for solve in ("worst", "solved"):
        find = lambda *settings, solve=solve: getattr(Spectral(8, *settings), solve)(losses)  # noqa: E731
        torch.testing.assert_close(find("extremile", 1.0, 0.3), torch.ones(8, dtype=torch.float64))  # the mean
        mild = 1 + (losses - losses.mean()) / 50  # nothing binds: the gradient of the penalty is the loss's
        torch.testing.assert_close(find("extremile", 2.0, 50.0), mild)
        by_rank = torch.tensor([1.0, 3, 5, 7, 9, 11, 13, 15], dtype=torch.float64) / 8  # 8 * (i^2 - (i-1)^2) / 64
        torch.testing.assert_close(find("extremile", 2.0, 0.0)[losses.argsort()], by_rank)
    torch.testing.assert_close(
        Spectral(8, "superquantile", 0.75, 0.0)(losses, batch), TopK(0.25)(losses, batch), rtol=1e-12, atol=0
    )


def test_prospect_step_by_step():
    """Uniform until all samples were seen; then the weights for the losses as they were when last seen."""
    run = trainer(*SMALL, "risk=prospect", "risk.nu=0.1", "optim=sam", "train.accumulate=2", double=True)
    n = len(run.dataset.train)
    table, q = np.full(n, np.nan), np.full(n, 1 / n)
    spectrum, ranked = np.array(spectrum_of(n, "extremile", 2.0)), 0
    for own in islice((part for epoch in range(3) for part in run.loader.epoch(epoch)), 2 * run.steps_per_epoch + 2):
        with torch.no_grad():
            losses = run.loss(run.model(own.x), own).numpy()
        index = own.index.numpy()
        expected = n * (q[index] * losses).mean() - 0.1 / 2 * n * ((q - 1 / n) ** 2).sum()
        assert run.step(own).item() == pytest.approx(expected, rel=1e-9)
        table[index] = losses
        if not np.isnan(table).any():
            q = pooled(table, spectrum, 0.1)
            ranked += 1
    assert ranked == run.steps_per_epoch + 3
    assert q.max() > 1.5 / n and q.min() < 0.7 / n
    assert run.state_dict()["risk"]["p"].shape == (n,)


def test_what_does_not_fit_is_one_line():
    node = {"_target_": "runner.risk.spectral.Spectral", "spectrum": "superquantile", "parameter": 2.0}
    with pytest.raises(ConfigError, match=r"risk: parameter=2.0: the spectrum superquantile needs one in \[0, 1\)"):
        build(node, "risk", samples=5)
    tokens = Batch(torch.zeros(2, 1), torch.zeros(2, 3), torch.arange(2))
    with pytest.raises(ValueError, match="one loss for each sample"):
        Spectral(5, memory=True)(torch.ones(2, 3), tokens)
    assert Spectral(5)(torch.ones(2, 3), tokens).item() == pytest.approx(1)
