"""SAF and MESA: the trajectory loss at known points, whole epochs against a transcription of the authors' scripts."""

import copy
from math import log

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from runner.hook.saf import trajectory
from tests.engine.test_replicas import assert_pack_equals_alone
from tests.tiny import SMALL, trainer

SHORT = ["dataset.subset=60", "train.batch_size=16", "train.epochs=6", "train.eval_every=100"]
PLAIN = ["optim.momentum=0.9", "optim.weight_decay=0", "optim.lr=0.1", "schedule=constant"]
SAF = ["hook=saf", "hook.saf.start=2", "hook.saf.lag=2", "hook.saf.coefficient=0.7", "hook.saf.temperature=3"]
MESA = ["hook=mesa", "hook.mesa.start=0", "hook.mesa.decay=0.8", "hook.mesa.coefficient=0.7"]


def test_the_term_by_hand():
    now, past = torch.tensor([[0.0, 0.0], [5.0, 5.0]]), torch.tensor([[0.0, log(3)], [5.0, 5.0]])
    one = 0.25 * log(0.25 / 0.5) + 0.75 * log(0.75 / 0.5)
    assert trajectory(now, past, 1.0).tolist() == pytest.approx([one, 0.0], abs=1e-7)
    assert trajectory(2 * now, 2 * past, 2.0).tolist() == pytest.approx([4 * one, 0.0], abs=1e-6)
    assert trajectory(past, now, 1.0)[0].item() == pytest.approx(0.5 * log(0.5 / 0.25) + 0.5 * log(0.5 / 0.75))


def test_what_was_not_recorded_adds_nothing_and_extreme_logits_stay_finite():
    now = torch.randn(3, 4, requires_grad=True)
    term = trajectory(now, torch.full((3, 4), torch.inf), 5.0)
    (gradient,) = torch.autograd.grad(term.sum(), now)
    assert term.abs().max() < 1e-6 and gradient.abs().max() < 1e-6
    extreme = torch.tensor([[6e4, -6e4, 0.0]], dtype=torch.float16, requires_grad=True)
    term = trajectory(extreme, torch.tensor([[-6e4, 6e4, 0.0]]), 5.0)
    (gradient,) = torch.autograd.grad(term.sum(), extreme)
    assert term.isfinite().all() and gradient.isfinite().all() and term.dtype == torch.float32


def epochs(run):
    for epoch in range(6):
        for batch in run.loader.epoch(epoch):
            yield epoch, batch


def kl(output, reference, temperature):
    """The expression of both scripts, whose reduction over a batch is the mean."""
    now, past = F.softmax(output / temperature, -1).log(), F.softmax(reference / temperature, -1)
    return F.kl_div(now, past, reduction="none").sum(-1).mean() * temperature**2


def test_saf_is_the_authors_loop():
    run = trainer(*SMALL, *SHORT, *PLAIN, *SAF, double=True)
    model, lag = trainer(*SMALL, *SHORT, double=True).model, 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ring = np.zeros((len(run.dataset.train), lag + 1, 10))
    used = 0.0
    for epoch, batch in epochs(run):
        run.step(batch)
        output = model(batch.x).logits
        index = batch.index.numpy()
        ring[index, epoch % (lag + 1)] = output.detach().numpy()
        loss = F.cross_entropy(output, batch.y)
        if epoch > 2:
            term = kl(output, torch.from_numpy(ring[index, (epoch - lag) % (lag + 1)]), 3)
            loss, used = loss + 0.7 * term, used + term.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert used > 0.1
    for mine, theirs in zip(model.parameters(), run.model.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("model", [["model.hidden=[16]"], ["model=resnet20"]], ids=["mlp", "resnet20"])
def test_mesa_is_the_authors_loop(model):
    words = [*SHORT, *PLAIN, *model, "dataset.subset=24", "train.batch_size=8"]
    run = trainer(*words, *MESA, double=True)
    student = trainer(*words, double=True).model
    teacher = copy.deepcopy(student).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    used = 0.0
    for epoch, batch in epochs(run):
        if epoch == 3:
            break
        run.step(batch)
        with torch.no_grad():
            reference = teacher(batch.x).logits
        output = student(batch.x).logits
        loss = F.cross_entropy(output, batch.y)
        if epoch > 0:
            term = kl(output, reference, 5)
            loss, used = loss + 0.7 * term, used + term.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():  # timm's ModelEmaV2
            for mean, value in zip(teacher.state_dict().values(), student.state_dict().values(), strict=True):
                mean.copy_(0.8 * mean + (1 - 0.8) * value)
    assert used > 0.01
    for (name, mine), theirs in zip(student.named_parameters(), run.model.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-6, atol=1e-9, msg=name)
    assert run.model.training and not run.hooks.evaluations  # evaluation sees the weights themselves


@pytest.mark.parametrize(("words", "start"), [(SAF, 2), (MESA, 0)], ids=["saf", "mesa"])
def test_up_to_its_start_it_is_the_loss_alone(words, start):
    run, plain = trainer(*SMALL, *SHORT, *words), trainer(*SMALL, *SHORT)
    for epoch, batch in epochs(run):
        if epoch == start + 2:
            break
        run.step(batch), plain.step(batch)
        if epoch <= start:
            assert torch.equal(run.weights.data, plain.weights.data)
    assert not torch.equal(run.weights.data, plain.weights.data)


@pytest.mark.parametrize("words", [SAF, MESA], ids=["saf", "mesa"])
def test_a_resumed_run_is_the_same(words):
    run, resumed = (trainer(*SMALL, *SHORT, *words) for _ in range(2))
    for number, (_, batch) in enumerate(epochs(run)):
        if number == 14:
            resumed.load_state_dict(copy.deepcopy(run.state_dict()))
        run.step(batch)
        if number >= 14:
            resumed.step(batch)
    assert torch.equal(run.weights.data, resumed.weights.data)


@pytest.mark.parametrize("words", [SAF, MESA], ids=["saf", "mesa"])
def test_packed_equals_alone_where_the_term_is_at_work(words):
    name = words[0].split("=")[1]
    common = [*SMALL, *SHORT, *words, "train.accumulate=2", "optim=sam"]
    cells = [[*common, "seed=0"], [*common, "seed=1", f"hook.{name}.coefficient=0.2", f"hook.{name}.temperature=2"]]
    assert_pack_equals_alone(lambda cells: [trainer(*cell, double=True) for cell in cells], cells)


@pytest.mark.parametrize("words", [SAF, MESA], ids=["saf", "mesa"])
def test_logits_that_do_not_fit_are_one_line(words):
    run = trainer(*SMALL, *words)
    batch = next(run.loader.epoch(0))
    out = run.model(batch.x)
    out.logits = out.logits[:, :3]
    with pytest.raises(ValueError, match=r"a trajectory loss needs logits \(B, 10\), got \(32, 3\)"):
        next(iter(run.hooks.named.values())).loss(run, out, batch)
