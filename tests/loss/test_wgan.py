"""Wasserstein GANs against their definitions, on points whose distribution is known."""

import json
import math

import numpy as np
import pytest
import torch

from runner.augment import Draw
from runner.core.batch import Batch, Output
from runner.core.mistake import ConfigError
from runner.dataset.gaussians25 import CENTRES, Gaussians25
from runner.loss.wgan import WGAN, energy
from tests.engine.test_replicas import assert_pack_equals_alone
from tests.test_compose import assert_resumed_equals_whole
from tests.tiny import command, trainer

WORDS = ["loss=wgan", "model=mlp_generator", "model.hidden=[8]", "loss.hidden=[8]", "optim=adam"]
POINTS = [*WORDS, "dataset=gaussians25", "dataset.size=64", "dataset.val=0", "train.batch_size=16"]


def made(turn: str, **settings) -> tuple[WGAN, Batch, Output, torch.Tensor]:
    torch.manual_seed(0)
    loss = WGAN((3,), hidden=[5], **settings).double()
    loss.turn = turn
    draw = np.random.default_rng(0)
    x, z, fake = (torch.from_numpy(draw.normal(size=(6, 3))) for _ in range(3))
    mix = torch.from_numpy(draw.uniform(size=(6, 1)))
    batch = Batch(x, torch.zeros(6), torch.arange(6)).put(z=z, mix=mix)
    asked = []

    def net(noise):
        asked.append(noise)
        return Output(fake, fake)

    out = loss.ask(net, batch)
    assert len(asked) == 1 and torch.equal(asked[0], z)
    return loss, batch, out, fake


def critic(loss: WGAN, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """D and its slope, by hand."""
    w, b, v, c = (p.detach().numpy() for p in loss.critic.parameters())
    h = x @ w.T + b
    return (np.maximum(h, 0) @ v.T + c)[:, 0], ((h > 0) * v) @ w


@pytest.mark.parametrize("penalty", [0.0, 2.5])
def test_the_losses_are_their_definitions(penalty):
    loss, batch, out, fake = made("critic", penalty=penalty)
    x, e = batch.x.numpy(), batch.more["mix"].numpy()
    slope = critic(loss, e * x + (1 - e) * fake.numpy())[1]
    expected = critic(loss, fake.numpy())[0] - critic(loss, x)[0]
    expected += penalty * (np.sqrt((slope**2).sum(1)) - 1) ** 2
    np.testing.assert_allclose(loss(out, batch).detach().numpy(), expected, rtol=1e-10)
    loss, batch, out, fake = made("model", penalty=penalty)
    np.testing.assert_allclose(loss(out, batch).detach().numpy(), -critic(loss, fake.numpy())[0], rtol=1e-10)


def test_the_penalty_has_the_gradient_of_finite_differences():
    loss, batch, out, _ = made("critic", penalty=3.0)
    own = list(loss.critic.parameters())
    grads = torch.autograd.grad(loss(out, batch).sum(), own)
    for parameter, grad in zip(own, grads, strict=True):
        place = (0,) * parameter.dim()
        ends = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                parameter[place] += step
            out = loss.ask(lambda z: Output(made("critic")[3], z), batch)
            ends.append(loss(out, batch).sum().item())
        assert grad[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-6)
        with torch.no_grad():
            parameter[place] += 1e-6


def test_the_critic_is_clamped_after_its_own_steps_alone():
    run = trainer(*POINTS, "loss.critic_turns=2", "loss.clip=0.05")
    run.loss.critic[0].weight.data.fill_(0.2)
    turns = []
    for batch in [*run.loader.epoch(0), *run.loader.epoch(1)][:6]:
        run.step(batch)
        turns.append(run.loss.turn)
        if run.loss.turn == "critic":
            top = max(parameter.abs().max().item() for parameter in run.loss.critic.parameters())
            assert top == torch.tensor(0.05).item()
    assert turns == ["critic", "critic", "model"] * 2
    free = trainer(*POINTS, "loss=wgan_gp")
    free.loss.critic[0].weight.data.fill_(0.2)
    free.step(next(iter(free.loader.epoch(0))))
    assert free.loss.critic[0].weight.abs().max() > 0.19


def test_the_energy_distance_is_that_of_normals_and_zero_in_the_mean_of_equals():
    draw = torch.Generator().manual_seed(0)
    assert abs(energy(*(torch.randn(2000, 1, generator=draw) for _ in range(2)))) < 0.01
    a = torch.distributions.Normal(0, 1).icdf((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000).unsqueeze(1)
    # of N(0, 1) and N(m, 1): 2 E|X - Y| - 2 E|X - X'| in closed form
    m = 1.5
    expected = 2 * (2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)) - 4 / math.sqrt(math.pi)
    assert energy(a, a + m) == pytest.approx(expected, abs=0.005)
    small = [torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [5.0]])]
    assert energy(*small) == pytest.approx(2 * (2 + 5 + 1 + 4) / 4 - 1 - 3)


def test_points_are_around_their_centres_and_judged_by_them():
    data = Gaussians25(size=5000, val=0.0)
    data.prepare()
    x, y = data.train.x, data.train.y
    assert x.shape == (5000, 2) and len(data.test) == 1250 and y.bincount(minlength=25).min() > 140
    rest = (x - CENTRES[y]) / 0.05
    assert abs(rest.mean()) < 0.03 and abs(rest.std() - 1) < 0.03
    judged = data.judge(x)
    assert judged["modes"] == 25 and judged["good"] == pytest.approx(1 - math.exp(-4.5), abs=0.01)
    some = torch.tensor([[0.0, 0.14], [0.0, 0.16], [2.0, 2.0], [1.0, 1.0]])
    assert data.judge(some) == {"good": 0.5, "modes": 2.0}
    other = Gaussians25(size=5000, val=0.0, seed=3)
    other.prepare()
    assert torch.equal(other.train.x, x)


def test_it_measures_the_same_at_any_time_and_writes_samples(tmp_path):
    run = trainer(*POINTS)
    found = run.evaluate(run.dataset.test)
    assert list(found) == ["energy", "gap", "good", "modes"] and found == run.evaluate(run.dataset.test)
    done = command(*POINTS, "train.epochs=4", f"outputs_dir={tmp_path}", "device=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("samples.npz")
    with np.load(path) as file:
        assert file["samples"].shape == (64, 2)
    result = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert {"test_energy", "test_good", "test_modes"} <= result["last"].keys()
    lines = [json.loads(line) for line in next(tmp_path.rglob("metrics.jsonl")).read_text().splitlines()]
    found = [line["test_energy"] for line in lines]
    assert result["best_test"]["test_energy"] == min(found) < max(found)


def test_a_model_of_another_size_is_one_line():
    with pytest.raises(ConfigError, match="as many outputs as an input has numbers, as model=mlp_generator has"):
        trainer("loss=wgan", "dataset=gaussians25", "model=mlp")


def test_noise_is_the_samples_own():
    run = trainer(*POINTS)
    one, again = (next(iter(run.loader.epoch(epoch))) for epoch in (0, 0))
    other = next(iter(run.loader.epoch(1)))
    assert torch.equal(one.more["z"], again.more["z"]) and not torch.equal(one.more["z"], other.more["z"])
    loss, index = run.loss, torch.arange(4000)
    batch = Batch(torch.zeros(4000, 2), torch.zeros(4000), index)
    z = loss.draw(batch, Draw(0, 1, 0, index)).more["z"]
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.05


@pytest.mark.parametrize("words", [["train.precision=fp16"], ["loss=wgan_gp", "train.precision=bf16"]], ids=str)
def test_it_is_resumed(words, tmp_path):
    own = [w for w in WORDS if w != "loss=wgan" or "loss=wgan_gp" not in words]
    assert_resumed_equals_whole(["dataset.subset=32", *own, *words, "loss.critic_turns=2"], 4, tmp_path)


@pytest.mark.parametrize("loss", ["wgan", "wgan_gp"])
def test_packs_with_penalties_and_rates_of_their_own(loss):
    own = [*POINTS[1:], f"loss={loss}", "loss.critic_turns=2", "train.accumulate=2"]
    number = "loss.penalty=3" if loss == "wgan_gp" else "optim.eps=1e-6"

    def make(cells):
        return [trainer(*own, *cell, double=True) for cell in cells]

    assert_pack_equals_alone(make, [["seed=0"], ["seed=1", number, "optim.lr=0.01"]], steps=7, atol=1e-9)


@pytest.mark.parametrize("loss", ["wgan_gp", "diffusion"])
def test_a_loss_that_asks_diverges_in_a_line(loss):
    from runner.engine.diagnose import explain

    own = [*POINTS[1:], f"loss={loss}"] if loss != "diffusion" else ["loss=diffusion", "model=mlp_time"]
    run = trainer(*own)
    batch = next(iter(run.loader.epoch(0)))
    assert "the risk, a penalty or the gradient" in explain(run, batch)
