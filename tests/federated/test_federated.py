"""Federated training: against plain loops written here, against plain training, and clients side by side = alone."""

import copy
import json
import multiprocessing
import os
import re
import signal
import time

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from runner.command.listing import conf_dir, options
from runner.core import checkpoint, keyed, padding, threads
from runner.engine.run import run as run_config
from runner.engine.trainer import Trainer
from runner.federated.clients import Clients
from runner.federated.cores import spread
from runner.federated.crew import Crew
from runner.federated.held import deal
from runner.federated.partition import Partition
from runner.record.folder import Died, Stopped
from tests.tiny import ROOT, command, compose, trainer

ALGORITHMS = [name for name in options("federated", [conf_dir()]) if name != "none"]
DATA = ["device=cpu", "dataset.subset=240", "model.hidden=[12]", "schedule=constant"]
SKEWED = [*DATA, "federated.partition=dirichlet", "federated.alpha=0.4", "federated.clients=6", "train.batch_size=16"]


def federation(*words: str, double: bool = True):
    """(trainer, algorithm), begun: nothing is written."""
    run = trainer(*words, double=double)
    algorithm = run.hooks.named["federated"]
    run.weights.copy_(algorithm.weights.data)
    return run, algorithm


def rounds(run, algorithm, count: int | None = None) -> None:
    for _ in range(algorithm.rounds if count is None else count):
        for _ in algorithm.one_round(run, run.count):
            pass


# ---- against loops written from the papers' algorithms, in plain torch: full batches, so that no order matters


def local(model, x, y, lr, steps, correct=lambda parameters: None):
    """Plain full-batch gradient descent on the mean cross-entropy."""
    for _ in range(steps):
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        add = correct(list(model.parameters()))
        with torch.no_grad():
            for i, (parameter, grad) in enumerate(zip(model.parameters(), grads, strict=True)):
                parameter -= lr * (grad + (0 if add is None else add[i]))
    return [parameter.detach().clone() for parameter in model.parameters()]


def plain(kind, start, data, rounds, lr, steps, mu=0.1, uniform=False, server_lr=1.0):
    """The weights after some rounds. steps: of every client. data: (x, y) of every client."""
    d = start[0].shape[1]
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(d, 12), torch.nn.ReLU(), torch.nn.Linear(12, 10)
    ).double()
    w = [tensor.clone() for tensor in start]
    c = [torch.zeros_like(tensor) for tensor in w]
    own = [[torch.zeros_like(tensor) for tensor in w] for _ in data]
    sizes = [1.0 if uniform else float(len(y)) for _, y in data]
    p = [size / sum(sizes) for size in sizes]
    for _ in range(rounds):
        ends = []
        for k, (x, y) in enumerate(data):
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), w, strict=True):
                    parameter.copy_(value)
            correct = {
                "fedprox": lambda now, w=w: [mu * (a.detach() - b) for a, b in zip(now, w, strict=True)],
                "scaffold": lambda now, own=own[k], c=c: [a - b for a, b in zip(c, own, strict=True)],
            }.get(kind, lambda now: None)
            ends.append(local(model, x, y, lr, steps[k], correct))
        if kind == "scaffold":
            news = [
                [ck - cg + (a - b) / (steps[k] * lr) for ck, cg, a, b in zip(own[k], c, w, ends[k], strict=True)]
                for k in range(len(data))
            ]
            c = [
                cg + sum(new[i] - o[i] for new, o in zip(news, own, strict=True)) / len(data) for i, cg in enumerate(c)
            ]
            own = news
        if kind == "fednova":
            tau = sum(pk * s for pk, s in zip(p, steps, strict=True))
            w = [a + tau * sum(p[k] * (ends[k][i] - a) / steps[k] for k in range(len(data))) for i, a in enumerate(w)]
        else:
            w = [a + server_lr * sum(p[k] * (ends[k][i] - a) for k in range(len(data))) for i, a in enumerate(w)]
    return w


PLAIN = {
    "fedavg": [],
    "fedavg uniform": ["federated.weighting=uniform"],
    "fedavg server_lr": ["federated.server.lr=0.5"],
    "fedprox": ["federated.mu=0.1"],
    "scaffold": [],
    "fednova": [],
}


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("name", PLAIN)
def test_equals_a_plain_loop(name, chunk):
    kind, _, extra = name.partition(" ")
    words = [*SKEWED, f"federated={kind}", *PLAIN[name], "train.batch_size=256", "optim.momentum=0"]
    words += ["optim.weight_decay=0", "optim.lr=0.3", "federated.rounds=4", f"federated.chunk={chunk}"]
    words += ["federated.local_epochs=3"]
    run, algorithm = federation(*words)
    split, data = run.loader._train, []
    for rows in algorithm.clients.rows:
        batch = run.loader.batch(rows)
        assert torch.equal(batch.y, split.y[rows])
        data.append((batch.x.flatten(1), batch.y))
    steps = [3] * len(data)
    if kind == "fednova":  # unequal work, without which it is FedAvg
        steps = algorithm.clients.steps = [1, 2, 3, 4, 5, 6]
    start = [view.clone() for _, view in run.weights.views(run.weights.data)]
    rounds(run, algorithm)
    uniform = extra == "uniform" or kind == "scaffold"
    expected = plain(kind, start, data, 4, 0.3, steps, uniform=uniform, server_lr=0.5 if extra == "server_lr" else 1.0)
    for (_, got), wanted in zip(run.weights.views(run.weights.data), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    assert max((a - b).abs().max().item() for a, b in zip(start, expected, strict=True)) > 0.01


@pytest.mark.parametrize(
    "words", [["dataset=digits"], ["dataset=multi_digits", "loss=asl_multilabel"], ["dataset=wine"]]
)
def test_feature_noise_is_a_share_of_the_inputs_range(words):
    """Grey levels are 0..16 in both sets of digits; a table has no range, and its normalised inputs get the noise."""
    noisy = ["federated=fedavg", "federated.clients=2", "federated.partition=noise", "train.batch_size=16"]
    run, algorithm = federation(*words, "device=cpu", *noisy, "federated.sigma=0.3")
    unit = 1 / run.loader.scale if words == ["dataset=wine"] else torch.tensor(16.0)
    for client, level in ((0, 0.0), (1, 0.3)):
        found = []
        for batch in algorithm.clients.batches(client, 0, 2):
            clean = run.loader.batch(batch.index)
            found.append(((batch.x - clean.x) / run.loader.scale / unit).flatten())
        assert torch.cat(found).std().item() == pytest.approx(level, rel=0.1, abs=1e-9)


# ---- against plain training


NORMED = ["model=resnet20", "model.depth=8", "dataset.subset=70", "augment=crop_flip", "train.batch_size=16"]


@pytest.mark.parametrize(
    "words",
    [
        [*DATA, "optim.momentum=0", "schedule=cosine", "schedule.warmup=2"],
        [*DATA, "optim=sam", "optim.momentum=0", "loss=poly", "hook=clip", "train.batch_size=50"],
        ["device=cpu", *NORMED, "optim.momentum=0"],
    ],
    ids=["cosine", "sam, poly, clip", "batch norm, augmented"],
)
def test_one_client_is_plain_training(words):
    once = trainer(*words, "train.epochs=3", double=True)
    for epoch in range(3):
        for batch in once.loader.epoch(epoch):
            once.step(batch)
    run, algorithm = federation(*words, "federated=fedavg", "federated.clients=1", "federated.rounds=3")
    rounds(run, algorithm)
    torch.testing.assert_close(run.weights.data, once.weights.data, rtol=0, atol=1e-10)
    for a, b in zip(run.model.buffers(), once.model.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_one_round_of_one_client_with_optimizer_state():
    words = [*DATA, "optim=adamw", "model.hidden=[12]"]
    once = trainer(*words, "train.epochs=4", double=True)
    for epoch in range(4):
        for batch in once.loader.epoch(epoch):
            once.step(batch)
    words += ["federated=fedavg", "federated.clients=1", "federated.rounds=1", "federated.local_epochs=4"]
    run, algorithm = federation(*words)
    rounds(run, algorithm)
    torch.testing.assert_close(run.weights.data, once.weights.data, rtol=0, atol=1e-10)


# ---- what is drawn

DRAWING = {  # what draws for a batch and not for a sample, and what is known of it by its purpose
    "runner/augment/mixup.py": (["augment=mixup"], "mixup"),
    "runner/quantization/eq_net.py": (["quantization=eq_net", "quantization.ends=same"], "eq_net"),
    "runner/quantization/adapt.py": (["quantization=adapt"], "dropout"),
    "runner/loss/elasticface.py": (["loss=elasticface"], "dropout"),
    "runner/core/dropout.py": (["model=wrn_16_8", "model.widen=1", "model.dropout=0.3"], "dropout"),
}
# These draw before training begins, for the server, or, as the order of an epoch, for all clients at once on purpose
OTHERS = {"runner/augment/__init__.py", "runner/dataset/__init__.py", "runner/dataset/colored_mnist.py"}
OTHERS |= {
    "runner/dataset/multi_digits.py",
    "runner/dataset/loader.py",
    "runner/engine/assemble.py",
    "runner/engine/trial.py",
}
OTHERS |= {f"runner/federated/{name}.py" for name in ("clients", "fedavg", "fedlex", "partition")}


def test_whatever_draws_for_a_batch_is_known():
    draws = re.compile(r"draw\.generator|keyed\.generator|dropout import.*\buniform|masks\.draw")
    found = {str(p.relative_to(ROOT)) for p in (ROOT / "runner").rglob("*.py") if draws.search(p.read_text())}
    assert found - OTHERS == set(DRAWING)


@pytest.mark.parametrize("module", DRAWING)
def test_every_client_draws_its_own_and_the_same_one_the_same(module, monkeypatch):
    words, purpose = DRAWING[module]
    words = [
        "device=cpu",
        "dataset.subset=60",
        "train.batch_size=16",
        *words,
        "federated=fedavg",
        "federated.clients=2",
    ]
    run, made = federation(*words, "federated.rounds=2", "federated.chunk=1", double=False)
    plain, found = keyed.generator, []

    def spied(seed, what, *keys):
        if what.startswith(purpose):
            found[-1].append((seed, what, *keys))
        return plain(seed, what, *keys)

    monkeypatch.setattr(keyed, "generator", spied)
    ends = []
    for client in (0, 1, 1, 0):
        found.append([])
        ends.append(made.clients.alone(client, 1, made.weights.data, made.buffers).delta)
    first, second, again, once_more = map(set, found)
    assert first and len(first) == len(second) and not first & second
    assert second == again and first == once_more and torch.equal(ends[1], ends[2]) and torch.equal(ends[0], ends[3])


def test_mixups_share_is_a_clients_own():
    """Read off the targets, one after another and side by side; of one client alone it is the plain run's."""
    words = ["device=cpu", "dataset.subset=90", "train.batch_size=32", "augment=mixup", "model.hidden=[8]"]
    run, made = federation(*words, "federated=fedavg", "federated.clients=3", "federated.rounds=2")

    def share(batch) -> float:
        return min(batch.y.max(-1).values.min().item(), batch.y.flatten()[batch.y.flatten() > 0].min().item())

    for_each = [[share(batch) for batch in made.clients.batches(client, 1, 2)] for client in range(3)]
    assert len({value for values in for_each for value in values}) == 6
    assert for_each[1] == [share(batch) for batch in made.clients.batches(1, 1, 2)]
    beside = [
        share(batch.replica(k)) for batch, _ in Crew(made.clients, 3)._side_by_side([0, 1, 2], 1, 1) for k in range(3)
    ]
    assert beside == [values[0] for values in for_each]
    once = trainer(*words)
    assert share(next(once.loader.epoch(1))) == pytest.approx(for_each[0][0], abs=1e-6)


# ---- side by side


def both_ways(words: list[str], chunk: int = 4) -> None:
    ends = []
    for size in (1, chunk):
        run, algorithm = federation(*words, f"federated.chunk={size}")
        assert algorithm.clients.apart() is None, algorithm.clients.apart()
        start = run.weights.clone()
        rounds(run, algorithm)
        ends.append((run.weights.clone(), [b.clone() for b in algorithm.buffers], run.sums(), run.report))
        assert (run.weights.data - start).abs().max() > 1e-3
    (w, buffers, sums, report), (w2, buffers2, sums2, report2) = ends
    torch.testing.assert_close(w2, w, rtol=0, atol=1e-10)
    for a, b in zip(buffers, buffers2, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-10)
    torch.testing.assert_close(sums2, sums, rtol=1e-5, atol=0)
    assert report2 == pytest.approx(report, rel=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_side_by_side_equals_one_after_another(algorithm):
    words = [*SKEWED, f"federated={algorithm}", "federated.rounds=3", "federated.local_epochs=2"]
    run, made = federation(*words)
    if why := made.clients.apart():
        pytest.skip(why)
    assert len(set(made.clients.steps)) > 1 and made.clients.uneven
    both_ways(words)


@pytest.mark.parametrize(
    "words",
    [
        [*NORMED, "optim=sam", "loss=poly", "federated.clients=4"],
        [*NORMED, "optim=adamw", "federated.clients=4", "federated.local_steps=7", "schedule=cosine"],
        [*SKEWED, "hook=[clip]", "optim=sam", "federated.participation=0.7", "federated.client_dropout=0.2"],
        [*SKEWED, "dataset.val=0", "federated.partition=noise", "federated.sigma=0.5", "train.drop_last=true"],
        [*SKEWED, "augment=mixup", "sharpness=asam"],
    ],
    ids=["batch norm, sam", "batch norm, adamw, cosine", "clip, part of the clients", "feature noise", "mixup, asam"],
)
def test_combinations_side_by_side(words):
    both_ways(["device=cpu", "federated=fedavg", "federated.rounds=2", *words], chunk=3)


def test_padding_changes_no_statistics():
    """Batch normalisation over 5 true samples of 8 is that over the 5, running statistics included."""
    for norm, shape in ((torch.nn.BatchNorm1d(3), (8, 3)), (torch.nn.BatchNorm2d(3), (8, 3, 4, 2))):
        x, mask = torch.randn(shape), torch.arange(8) < 5
        other = copy.deepcopy(norm)
        expected = other(x[:5])
        with padding.left_out([norm], mask):
            got = norm(x)
        torch.testing.assert_close(got[:5], expected)
        for a, b in zip(norm.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(a, b)
        assert norm(x).shape == shape  # and is its old self again


def test_same_data_same_update():
    run, algorithm = federation(*SKEWED, "federated=fedavg")
    clients = algorithm.clients
    clients.rows[4] = clients.rows[1]
    for own in (clients.kept, clients.steps, clients.per_epoch):
        own[4] = own[1]
    start, buffers = algorithm.weights.data, algorithm.buffers
    one, two = (clients.alone(client, 0, start, buffers).delta for client in (1, 4))
    assert torch.equal(one, two) and one.abs().max() > 0
    both = Crew(clients, 2).answers([1, 4], 0, start, buffers).delta
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-14)


REASONS = {
    "dropout": ["model=wrn_16_8", "model.widen=1", "model.dropout=0.3"],
    "TopK": ["risk=top_k"],
    "fp16": ["train.precision=fp16"],
    "accumulate": ["train.accumulate=2"],
    "spectral_decoupling": ["hook=spectral_decoupling"],
    "ELR": ["loss=elr"],
    "AdaptiveK": ["risk=adaptive_k"],
    "saf": ["hook=saf"],
    "pgd": ["hook=pgd"],
}


@pytest.mark.parametrize("chunk", ["auto", 4])
@pytest.mark.parametrize("reason", REASONS)
def test_what_is_not_made_for_it_goes_one_after_another(reason, chunk):
    words = [word for word in SKEWED if reason != "dropout" or not word.startswith("model")]
    words += [*REASONS[reason], "federated=fedavg", "federated.rounds=1", f"federated.chunk={chunk}"]
    run, algorithm = federation(*words, double=False)
    said = []
    run.tell = said.append
    rounds(run, algorithm)
    assert algorithm.size == 1
    assert "one after another" in said[0] and reason in said[0]


# ---- identities


def test_scaffolds_variates_average_to_the_servers():
    words = [*SKEWED, "federated=scaffold", "federated.participation=0.5", "federated.rounds=5"]
    run, algorithm = federation(*words)
    rounds(run, algorithm)
    assert 3 <= len(algorithm.own) <= 6 and algorithm.c.abs().max() > 0
    torch.testing.assert_close(sum(algorithm.own.values()) / 6, algorithm.c, rtol=0, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_with_equal_steps_is_fedavg(momentum):
    ends = []
    for name in ("fedavg", "fednova"):
        words = [*SKEWED, f"federated={name}", "federated.local_steps=5", f"optim.momentum={momentum}"]
        run, algorithm = federation(*words, "federated.rounds=2")
        rounds(run, algorithm)
        ends.append(run.weights.clone())
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-12)


def test_fednovas_weights_of_gradients_by_hand():
    """m = 0.5, S = 3: the gradients enter with 1 + 0.5 + 0.25, 1 + 0.5 and 1: 4.25 in all; S = 1: 1."""
    run, algorithm = federation(*SKEWED, "federated=fednova", "optim.momentum=0.5")
    from runner.federated.clients import Updates

    delta = torch.zeros(2, len(algorithm.weights), dtype=torch.float64)
    delta[0, 0], delta[1, 0] = 4.25, 1.0
    numbers = torch.tensor([[3.0, 1.0], [3.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    algorithm.begin_round()
    algorithm.collect(Updates([0, 1], *numbers, delta, [b.unsqueeze(0).repeat(2, 1) for b in algorithm.buffers]))
    # p = 3/4, 1/4: sum p a = 3.4375, and sum p d / a = 3/4 + 1/4 = 1
    assert algorithm.direction()[0].item() == pytest.approx(3.4375)


def test_divergence_by_hand():
    """Updates (3, 0) and (0, 3) of clients of 2 and 1 samples: d = (2, 1), |d|^2 = 5;
    2/3 * ((3-2)^2 + 1) + 1/3 * (4 + 4) = 4, and sqrt(4 / 5)."""
    run, algorithm = federation(*SKEWED, "federated=fedavg")
    from runner.federated.clients import Updates

    delta = torch.zeros(2, len(algorithm.weights), dtype=torch.float64)
    delta[0, 0] = delta[1, 1] = 3.0
    numbers = torch.tensor([[2.0, 1.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    algorithm.begin_round()
    algorithm.collect(Updates([0, 1], *numbers, delta, []))
    algorithm.buffers = []
    found = algorithm._serve(run)
    assert found == {"update_norm": pytest.approx(5**0.5), "divergence": pytest.approx((4 / 5) ** 0.5)}


def test_validation_samples_are_dealt_like_the_training_samples():
    class Part:
        def __init__(self, y):
            self.y, self.domain = torch.tensor(y), None

    owner = np.array([0, 0, 0, 1, 1, 1, 1, -1])  # class 0: three and one; class 1: none and three, one is nobody's
    train, val = Part([0, 0, 0, 0, 1, 1, 1, 1]), Part([0, 1, 0, 0, 1, 0, 2])
    made = object.__new__(Partition)
    made.owner, made.clients = owner, 2
    dealt = deal(made, train, val)
    assert dealt.tolist() == [0, 1, 0, 0, 1, 1, -1]
    # with domains: class 0 of domain 1 belongs to client 1 alone, of domain 0 to client 0 alone
    train.domain, val.domain = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0]), torch.tensor([1, 0, 0, 0, 0, 1, 0])
    assert deal(made, train, val).tolist() == [1, 1, 0, 0, 1, 1, -1]


# ---- on several cores


@pytest.fixture
def cores(monkeypatch):
    """Two threads, and processes for every client after the first; a function that counts the processes so far."""
    forked = []

    def watched(work, tasks, count, *rest):
        forked.append(count)
        return spread(work, tasks, count, *rest)

    monkeypatch.setattr("runner.federated.cores.FORK", 0.0)
    monkeypatch.setattr("runner.federated.cores.spread", watched)
    before = threads.allowed()
    threads.allow(2)
    yield lambda: sum(forked)
    threads.allow(before)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("chunk", [1, 4])
def test_processes_change_nothing(name, chunk, cores, monkeypatch):
    """Bit for bit: weights, buffers, the record's sums and learning rate."""
    words = [*SKEWED, "hook=clip", f"federated={name}", "federated.rounds=2", f"federated.chunk={chunk}"]
    ends = []
    for least in (0.0, 1e9):
        monkeypatch.setattr("runner.federated.cores.FORK", least)
        before = cores()
        run, algorithm = federation(*words, double=False)
        rounds(run, algorithm)
        assert (cores() - before > 0) == (least == 0.0)
        ends.append(
            (run.weights.clone(), algorithm.buffers, run.sums(), run.optimizer.param_groups[0]["lr"], run.report)
        )
    (w, buffers, sums, lr, report), (w2, buffers2, sums2, lr2, report2) = ends
    assert torch.equal(w, w2) and torch.equal(sums, sums2) and lr == lr2 and report == report2
    assert all(torch.equal(a, b) for a, b in zip(buffers, buffers2, strict=True))


@pytest.mark.parametrize(
    "words",
    [["loss=elr"], ["risk=adaptive_k"], ["train.precision=fp16"], ["federated.clients=1"]],
    ids=["a loss's memory", "a risk's memory", "a loss scale", "one client"],
)
def test_what_leaves_something_behind_stays_in_one_process(words, cores):
    run, algorithm = federation(*SKEWED, "federated=fedavg", "federated.rounds=2", "federated.chunk=1", *words)
    rounds(run, algorithm)
    assert cores() == 0


def test_a_poisoned_client_is_refused_by_its_process(cores):
    run, algorithm = federation(*SKEWED, "federated=fedavg", "federated.rounds=2", "federated.chunk=1")
    run.loader._train.base = base = run.loader._train.base.clone().double()
    own = algorithm.clients.rows[2][:1]
    base[own if run.loader._train.rows is None else run.loader._train.rows[own]] = float("nan")
    said = []
    run.tell = said.append
    rounds(run, algorithm)
    assert [line.partition(" is refused: ")[0] for line in said] == ["round 1: client 2", "round 2: client 2"]
    assert "the inputs of the batch" in said[0] and cores() > 0
    assert run.report["clients"] == 5 and torch.isfinite(run.weights.data).all()


@pytest.mark.parametrize("kills, of", [(1, [3]), (1, range(6)), (2, [3])], ids=["one", "every client's", "twice"])
def test_a_process_that_is_killed(kills, of, cores, monkeypatch, tmp_path):
    """Once: its client trains again, to the same bits. Twice: one line."""
    words = [*SKEWED, "federated=scaffold", "federated.rounds=2", "federated.chunk=1"]
    whole, undisturbed = federation(*words, double=False)
    rounds(whole, undisturbed)
    run, algorithm = federation(*words, double=False)
    here, alone, said = os.getpid(), algorithm.clients.alone, []
    run.tell = said.append

    def fatal(client, *rest):
        done = alone(client, *rest)
        mark = tmp_path / f"{client} {len(list(tmp_path.glob(f'{client} *')))}"
        if os.getpid() != here and client in of and mark.name[-1] != str(kills):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    monkeypatch.setattr(algorithm.clients, "alone", fatal)
    if kills == 2:
        with pytest.raises(Died) as error:
            rounds(run, algorithm)
        assert str(error.value) == (
            "2 processes that trained client 3 were killed (exit code -9; -9 is often a lack of memory); "
            "OMP_NUM_THREADS=1 trains all in this one"
        )
    else:
        rounds(run, algorithm)
        assert torch.equal(run.weights.data, whole.weights.data) and torch.equal(run.sums(), whole.sums())
        assert torch.equal(algorithm.c, undisturbed.c) and run.report == whole.report
    line = "a process that trained client 3 was killed (exit code -9; -9 is often a lack of memory): once more"
    assert line in said and len(said) == len(list(tmp_path.iterdir())) - (kills == 2)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("count", [1, 3])
def test_idle_processes_that_are_killed(count, tmp_path):
    """Whatever they have in hand, or nothing, or are sending: every task is done once, and in its order."""
    said, found, killed = [], [], tmp_path / "killed"

    def work(task):
        while task[0] > 6 and not killed.exists():  # so that something is left to do, however fast the processes are
            time.sleep(0.01)
        return task[0], torch.zeros(50_000)

    for done in spread(work, [[k] for k in range(9)], count, lambda: None, said.append):
        found.append(done[0])
        if len(found) == 4:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
            killed.touch()
    assert found == list(range(9)) and said
    assert not multiprocessing.active_children()


def test_an_error_in_a_process_is_the_runs(cores, monkeypatch):
    run, algorithm = federation(*SKEWED, "federated=fedavg", "federated.rounds=1", "federated.chunk=1")
    here, alone = os.getpid(), algorithm.clients.alone

    def broken(client, *rest):
        if os.getpid() != here and client == 3:
            raise ZeroDivisionError("three")
        return alone(client, *rest)

    monkeypatch.setattr(algorithm.clients, "alone", broken)
    with pytest.raises(ZeroDivisionError, match="three"):
        rounds(run, algorithm)
    assert not multiprocessing.active_children()


def test_stopped_while_processes_train(cores, tmp_path, monkeypatch):
    """A signal ends the wait; the run goes on later and is the run that was never stopped."""
    words = [*SKEWED, "federated=scaffold", "federated.rounds=2", "federated.chunk=1"]
    whole = run_config(compose(*words, f"outputs_dir={tmp_path / 'whole'}"), [], say=lambda *_: None)
    config = compose(*words, f"outputs_dir={tmp_path / 'parts'}")
    here, alone = os.getpid(), Clients.alone

    def slow(self, client, *rest):
        if os.getpid() != here and client == 4:
            os.kill(here, signal.SIGTERM)
            time.sleep(600)
        return alone(self, client, *rest)

    begun = time.perf_counter()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Clients, "alone", slow)
        run_config(config, [], say=lambda *_: None)
    assert time.perf_counter() - begun < 300 and not multiprocessing.active_children()
    parts = run_config(config, [], say=lambda *_: None)
    apart = ("seconds", "images_per_second")
    assert {k: v for k, v in parts["last"].items() if k not in apart} == {
        k: v for k, v in whole["last"].items() if k not in apart
    }
    a, b = (checkpoint.load(next((tmp_path / kind).glob("runs/*/last.pt"))) for kind in ("whole", "parts"))
    assert all(torch.equal(value, b["model"][key]) for key, value in a["model"].items())


# ---- a client that breaks, an interrupted run


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_poisoned_client_is_refused(chunk):
    words = [*SKEWED, "federated=fedavg", "federated.rounds=2", f"federated.chunk={chunk}", "dataset.val=0"]
    run, algorithm = federation(*words)
    bad = int(algorithm.clients.rows[2][0])
    base = run.loader._train.base.clone().double()
    base[bad if run.loader._train.rows is None else run.loader._train.rows[bad]] = float("nan")
    run.loader._train.base = base
    others, healthy = federation(*words)
    healthy.plan = [([client for client in chosen if client != 2], []) for chosen, _ in healthy.plan]
    said = []
    run.tell = said.append
    rounds(run, algorithm)
    rounds(others, healthy)
    assert [line.partition(" is refused: ")[0] for line in said] == ["round 1: client 2", "round 2: client 2"]
    assert run.report["refused"] == 1 and run.report["clients"] == 5
    torch.testing.assert_close(run.weights.data, others.weights.data, rtol=0, atol=1e-12)
    torch.testing.assert_close(run.sums(), others.sums())


def test_an_average_of_weights_is_the_servers():
    """After every round a = d a + (1 - d) w with d = min(0.9, (1 + t) / (10 + t)): 0.1, 2 / 11."""
    words = [*SKEWED, "federated=fedavg", "federated.rounds=2", "hook=ema", "hook.ema.decay=0.9", "federated.chunk=4"]
    run, algorithm = federation(*words)
    expected = run.weights.clone()
    for d in (1 / 10, 2 / 11):
        rounds(run, algorithm, 1)
        expected = d * expected + (1 - d) * algorithm.weights.data
    torch.testing.assert_close(run.hooks.named["ema"].average, expected, rtol=0, atol=1e-12)
    with run.hooks.weights(run):
        torch.testing.assert_close(run.weights.data, expected, rtol=0, atol=1e-12)


def test_a_round_without_answers_changes_nothing():
    run, algorithm = federation(*SKEWED, "federated=fedavg", "federated.rounds=1")
    algorithm.plan = [([0, 3], [0, 3])]
    start, said = run.weights.clone(), []
    run.tell = said.append
    rounds(run, algorithm)
    assert torch.equal(run.weights.data, start)
    assert "no client answered" in said[0]


@pytest.mark.parametrize("name, chunk", [("scaffold", 1), ("fednova", 3), ("fedavg", 3)])
def test_resumed_in_the_middle_of_a_round_bit_for_bit(name, chunk, tmp_path, monkeypatch):
    words = [*SKEWED, f"federated={name}", "federated.rounds=3", f"federated.chunk={chunk}", "hook=clip"]
    words += ["federated.server.momentum=0.5"]
    whole = run_config(compose(*words, f"outputs_dir={tmp_path / 'whole'}"), [], say=lambda *_: None)
    config = compose(*words, f"outputs_dir={tmp_path / 'parts'}")

    step, left = Trainer.step, 0

    def counted(self, batch):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", counted)
    stops = 0
    for after in (9, 11, 14):
        left = after
        try:
            run_config(config, [], say=lambda *_: None)
        except Stopped:
            stops += 1
    parts = run_config(config, [], say=lambda *_: None)
    assert stops >= 2
    assert {k: v for k, v in parts["last"].items() if k not in ("seconds", "images_per_second")} == {
        k: v for k, v in whole["last"].items() if k not in ("seconds", "images_per_second")
    }
    a, b = (checkpoint.load(next((tmp_path / kind).glob("runs/*/last.pt"))) for kind in ("whole", "parts"))
    for key, value in a["model"].items():
        assert torch.equal(value, b["model"][key])


# ---- the command


def test_the_runs_folder(tmp_path):
    words = ["federated=fedavg", "federated.rounds=2", "federated.partition=labels", "federated.participation=0.5"]
    result = command(*words, "device=cpu", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 rounds of 5 of 10 clients with" in result.stdout
    assert "round 2/2" in result.stdout and "worst client" in result.stdout
    (folder,) = [path for path in (tmp_path / "outputs/runs").iterdir() if path.is_dir() and path.name[0] != "."]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    size = 4 * json.loads((folder / "result.json").read_text())["parameters"]
    for line in lines:
        assert line["bytes_down"] == line["bytes_up"] == 5 * size
        assert 0 <= line["client_accuracy_worst"] <= line["client_accuracy_mean"] <= 1
        assert line["divergence"] > 0 and line["refused"] == 0
    assert (folder / "partition.png").stat().st_size > 5000
    owner = np.load(folder / "partition.npz")["owner"]
    assert len(owner) == 1294 and set(owner) == set(range(10))
    plan = json.loads((folder / "participation.json").read_text())["rounds"]
    assert [len(round_["clients"]) for round_ in plan] == [5, 5]


@pytest.mark.parametrize(
    "words, message",
    [
        (["federated.clients=2000"], "federated"),
        (["federated.partition=dirichelt"], "Did you mean 'dirichlet'?"),
        (["federated.partition=domain"], "domain"),
        (["federated.server.momentun=0.9"], "federated.server.momentun"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, message, tmp_path):
    result = command("federated=fedavg", *words, "device=cpu", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_says_in_one_line_that_clients_processes_are_killed(tmp_path):
    """As by a machine without memory: every process that is forked for clients kills itself. Nothing of the first
    client, which trains here, is lost."""
    (tmp_path / "fatal.py").write_text(
        "import multiprocessing, os, signal, time\n"
        "from runner.loss.ce import CrossEntropy\n"
        "class Fatal(CrossEntropy):\n"
        "    def forward(self, out, batch):\n"
        "        time.sleep(0.05)\n"
        "        if multiprocessing.parent_process() is not None:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().forward(out, batch)\n"
    )
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "fatal.yaml").write_text("# Fatal -- here\n_target_: fatal.Fatal\n")
    words = ["--config-dir", "conf", "loss=fatal", "federated=fedavg", "federated.clients=6", "federated.rounds=1"]
    words += ["federated.local_steps=4", "federated.chunk=1", "device=cpu"]
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    result = command(*words, cwd=tmp_path, env={"OMP_NUM_THREADS": "2", "PYTHONPATH": path})
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("runner: 2 processes that trained client") and "OMP_NUM_THREADS=1" in line
    assert sum(": once more" in told for told in result.stdout.splitlines()) >= 1
    again = command(*words, cwd=tmp_path, env={"OMP_NUM_THREADS": "1", "PYTHONPATH": path})
    assert again.returncode == 0, again.stderr
