"""Losses that draw, ask, measure and make: diffusion against its definition and against closed forms."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from runner.augment import Draw
from runner.core.batch import Batch, Output
from runner.core.mistake import ConfigError
from runner.loss.diffusion import Diffusion
from runner.record import grid
from tests.conftest import ROOT
from tests.engine.test_replicas import assert_pack_equals_alone
from tests.test_compose import assert_resumed_equals_whole
from tests.tiny import command, trainer

WORDS = ["loss=diffusion", "model=mlp_time", "model.width=16", "model.depth=1", "optim=adam"]
SMALL = [*WORDS, "dataset.subset=60", "dataset.val=0", "train.batch_size=12"]


def test_draws_are_normal_and_keyed_by_the_sample():
    index = torch.arange(500)
    draw = Draw(0, 2, 0, index)
    found = draw.normal("noise", 41)
    assert found.shape == (500, 41) and torch.equal(found, Draw(0, 2, 9, index).normal("noise", 41))
    assert torch.equal(Draw(0, 2, 0, index.flip(0)).normal("noise", 41), found.flip(0))
    assert not torch.equal(draw.of("x2").normal("noise", 41), found)
    z = found.double()
    assert abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.02 and abs((z**4).mean() - 3) < 0.15
    assert np.abs(np.corrcoef(z.T.numpy()) - np.eye(41)).max() < 0.2
    assert torch.isfinite(z).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_schedule_is_the_papers(schedule):
    loss, t = Diffusion(1000, schedule), np.arange(1, 1001)
    if schedule == "linear":
        b = 1e-4 + (0.02 - 1e-4) * (t - 1) / 999
    else:
        f = np.cos(np.pi / 2 * (np.arange(1001) / 1000 + 0.008) / 1.008) ** 2
        b = np.minimum(1 - f[1:] / f[:-1], 0.999)
    np.testing.assert_allclose(loss.b.numpy(), b, rtol=1e-9)
    np.testing.assert_allclose(loss.a.numpy(), np.cumprod(1 - b), rtol=1e-9)


@pytest.mark.parametrize("weighting, gamma", [("none", 5.0), ("min_snr", 5.0), ("min_snr", 0.3)])
def test_the_loss_is_its_definition(weighting, gamma):
    size, width = 7, 4
    draw = np.random.default_rng(0)
    x, noise, guess = (torch.from_numpy(draw.normal(size=(size, width))) for _ in range(3))
    step, loss = torch.tensor([0, 1, 5, 20, 33, 48, 49]), Diffusion(50, weighting=weighting, gamma=gamma)
    batch = Batch(x, torch.zeros(size), torch.arange(size)).put(step=step, noise=noise)
    asked = []

    def net(x, t):
        asked.append((x, t))
        return Output(guess, guess)

    losses = loss(loss.ask(net, batch), batch)
    for k in range(size):
        a = np.prod([1 - b for b in loss.b[: step[k] + 1].tolist()])
        np.testing.assert_allclose(asked[0][0][k], math.sqrt(a) * x[k] + math.sqrt(1 - a) * noise[k], rtol=1e-9)
        assert asked[0][1][k] == pytest.approx((step[k].item() + 1) / 50)
        snr = a / (1 - a)
        w = 1 if weighting == "none" else min(snr, gamma) / snr
        assert losses[k].item() == pytest.approx(w * np.mean((guess[k] - noise[k]).numpy() ** 2), rel=1e-9)


def best(loss: Diffusion, mean: float, spread: float):
    """The noise that x_t is expected to hold where x is normal: known in closed form."""

    def net(x, t):
        a = loss.a[(t.double() * loss.steps).round().long() - 1].unsqueeze(1)
        variance = a * spread**2 + 1 - a
        found = (1 - a).sqrt() * (x.double() - a.sqrt() * mean) / variance
        return Output(found, found)

    return net


def test_of_a_normal_distribution_the_best_network_makes_samples_of_it():
    loss, like = Diffusion(1000), Batch(torch.zeros(4000, 1, dtype=torch.float64), None, torch.arange(4000))
    made = loss.sample(best(loss, 0.7, 0.4), like, Draw(0, 0, 0, like.index))
    assert made.shape == (4000, 1) and abs(made.mean() - 0.7) < 0.03 and abs(made.std() - 0.4) < 0.02
    assert torch.equal(made, loss.sample(best(loss, 0.7, 0.4), like, Draw(0, 0, 0, like.index)))
    assert not torch.equal(made, loss.sample(best(loss, 0.7, 0.4), like, Draw(1, 0, 0, like.index)))


def test_of_a_normal_distribution_the_best_network_has_the_known_error():
    """E |e - e_hat|^2 = a s^2 / (a s^2 + 1 - a), and no other network has less."""
    loss, count = Diffusion(20), 40_000
    index = torch.arange(count)
    x = 0.7 + 0.4 * Draw(5, 0, 0, index).normal("data", 1).double()
    batch = loss.draw(Batch(x, None, index), Draw(0, 0, 0, index))
    net = best(loss, 0.7, 0.4)
    mine = loss(loss.ask(net, batch), batch)
    for step in (0, 7, 19):
        a = loss.a[step].item()
        at = mine[batch.more["step"] == step]
        expected = a * 0.16 / (a * 0.16 + 1 - a)
        assert at.mean().item() == pytest.approx(expected, rel=5 / math.sqrt(len(at)) * 1.5)
    shifted = loss(loss.ask(lambda x, t: net(x + 0.1, t), batch), batch)
    assert shifted.mean() > mine.mean()


# ---- runs


def test_passes_and_parts_of_a_step_see_the_same_noise():
    found, still = [], ["sharpness=sam", "sharpness.rho=0"]
    for more in ([], ["train.accumulate=3"], still, [*still, "sharpness.m=4"]):
        run = trainer(*SMALL, *more, double=True)
        for batch in run.loader.epoch(0):
            run.step(batch)
        found.append(run.weights.clone())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("more", [["sharpness=sam", "hook=[ema,clip]"], ["train.precision=fp16", "train.accumulate=2"]])
def test_stopped_and_gone_on(more, tmp_path):
    assert_resumed_equals_whole([*WORDS, "dataset.subset=32", *more], 6, tmp_path)


def test_packed_equals_alone():
    def make(cells):
        return [trainer(*SMALL, "loss.weighting=min_snr", *words, double=True) for words in cells]

    assert_pack_equals_alone(make, [["seed=0"], ["seed=1", "loss.gamma=2.0"], ["seed=2", "optim.lr=0.01"]], steps=8)


def test_clients_draw_and_one_client_is_the_plain_run():
    plain = trainer(*WORDS, "dataset.subset=60", "dataset.val=0", "train.batch_size=12", "train.epochs=2")
    for epoch in range(2):
        for batch in plain.loader.epoch(epoch):
            plain.step(batch)
    run = trainer(*SMALL, "federated=fedavg", "federated.clients=1", "federated.rounds=1", "federated.local_epochs=2")
    list(run.hooks.named["federated"].one_round(run, 0))
    torch.testing.assert_close(run.weights.data, plain.weights.data, rtol=1e-4, atol=1e-6)


def test_measured_is_the_same_at_any_time_and_falls():
    run = trainer(*SMALL, "model.width=64", "train.epochs=30", "optim.lr=0.005")
    first = run.evaluate(run.dataset.test)
    assert first == run.evaluate(run.dataset.test) == {"mse": pytest.approx(1, abs=0.03)}  # it gives 0 at first
    for epoch in range(30):
        for batch in run.loader.epoch(epoch):
            run.step(batch)
    assert run.evaluate(run.dataset.test)["mse"] < 0.6


def test_a_run_ends_with_its_samples(tmp_path):
    done = command(*SMALL, "train.epochs=2", "loss.steps=20", "dataset.val=0.2", "-m", "seed=0,1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test_mse" in done.stdout and "accuracy" not in done.stdout
    folders = [path.parent for path in (tmp_path / "outputs" / "runs").glob("*/result.json")]
    assert len(folders) == 2
    made = [np.load(folder / "samples.npz")["samples"] for folder in folders]
    assert all(m.shape == (48, 1, 8, 8) and m.min() >= 0 and m.max() <= 16 for m in made)
    assert not np.array_equal(*made) and (folders[0] / "samples.png").stat().st_size > 1000
    result = json.loads((folders[0] / "result.json").read_text())
    assert result["classes"] is None and {"val_mse", "test_mse"} <= result["last"].keys()
    assert result["best_val"]["step"] in (4, 8) and "train_accuracy" not in result["last"]


def test_a_grid_shows_every_sample_once():
    images = np.stack([np.full((1, 2, 3), k / 5) for k in range(5)])
    whole = grid.tiled(images)
    assert whole.shape == (5, 11) and [whole[0, 0], whole[0, 4], whole[0, 8]] == [0, 0.2, 0.4]
    assert whole[3, 4] == 0.8 and (whole[:, 3] == 1).all() and (whole[3:, 8:] == 1).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=diffusion"], "loss=diffusion calls the model with t, which model=mlp does not take; .* model=mlp_time"),
        ([*WORDS, "augment=mixup"], "augment=mixup mixes samples, and loss=diffusion wants each alone"),
        ([*WORDS, "quantization=lsq"], "quantization=lsq measures what is deployed by its predictions"),
    ],
    ids=lambda of: of if isinstance(of, str) else None,
)
def test_refused_in_a_line(words, message):
    with pytest.raises(ConfigError, match=message):
        trainer(*words)


# ---- the loss that DESIGN.md shows


def test_the_loss_shown_does_what_it_says(tmp_path, monkeypatch):
    text = (
        (ROOT / "DESIGN.md").read_text().partition("from runner.loss import Loss  # denoise.py")[2].partition("```")[0]
    )
    assert len([line for line in text.splitlines() if line.strip()]) <= 20
    (tmp_path / "denoise.py").write_text(f"from runner.loss import Loss\n{text}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "denoise", raising=False)
    own = ["loss=stablemax", "loss._target_=denoise.Denoise"]
    words = [*own, "model.hidden=[64]", "optim=adam", "train.batch_size=32"]
    run = trainer(*words)
    first, last = [], []
    for epoch in range(8):
        for batch in run.loader.epoch(epoch):
            (first if epoch == 0 else last).append(run.step(batch).item())
    assert sum(last[-10:]) < 0.8 * sum(first[:10])
    assert run.evaluate(run.dataset.test).keys() == {"spread"}
    few = [[*words, "train.batch_size=8", f"seed={seed}"] for seed in range(2)]
    assert_pack_equals_alone(lambda cells: [trainer(*SHORT, *cell, double=True) for cell in cells], few, steps=4)


SHORT = ["dataset.subset=40", "dataset.val=0"]
