"""What clients keep from round to round, what one that does not end its round leaves, and which steps count."""

import pytest
import torch

from runner.command.listing import conf_dir, options
from runner.core import checkpoint
from runner.engine.trainer import Trainer
from runner.quantization.fake import Quantized
from runner.record.folder import Stopped
from tests.engine.test_replicas import assert_same
from tests.federated.made import DATA, SKEWED, federation, rounds
from tests.reference.quantization_reste import power
from tests.tiny import trainer

PLAIN = ["optim.momentum=0", "model.hidden=[12,12]"]

# what makes an option act within a dozen steps
EARLY = {
    "adapt": ["quantization.min_lookback=3", "quantization.max_lookback=5", "optim.lr=0.01"],
    "gaqat": ["quantization.period=3", "quantization.threshold=0.6", "sharpness=sam"],
    "mesa": ["hook.mesa.start=0", "hook.mesa.decay=0.8"],
    "saf": ["hook.saf.start=0", "hook.saf.lag=1"],
    "drw": ["hook.drw.epoch=1"],
    "spectral_decoupling": ["hook.spectral_decoupling.delay=5"],
    "spl_plus": ["hook.spl_plus.beta=0.3", "hook.spl_plus.ratio=100"],
}

HOOKS = [f"hook={name}" for name in options("hook", [conf_dir()]) if name not in ("none", "pgd", "smooth_adversarial")]

AFTER = ("none", "ptq", "adaround", "adaquant")

QUANTIZERS = [f"quantization={name}" for name in options("quantization", [conf_dir()]) if name not in AFTER]


def words_of(option: str) -> list[str]:
    return [*DATA, *PLAIN, option, *EARLY.get(option.partition("=")[2], [])]


# ---- over rounds


@pytest.mark.parametrize("option", [*HOOKS, *QUANTIZERS])
def test_one_client_over_rounds_is_plain_training(option):
    """So whatever counts steps counts them over rounds."""
    words = words_of(option)
    once = trainer(*words, "train.epochs=4", double=True)
    for epoch in range(4):
        for batch in once.loader.epoch(epoch):
            once.step(batch)
    run, algorithm = federation(*words, "federated=fedavg", "federated.clients=1", "federated.rounds=4")
    rounds(run, algorithm)
    torch.testing.assert_close(run.weights.data, once.weights.data, rtol=0, atol=1e-10)
    for a, b in zip(run.model.buffers(), once.model.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


COUNTING = ["quantization=adapt", "quantization=gaqat", "hook=mesa", "hook=spl_plus"]

MANY = ["federated.clients=4", "train.batch_size=16", "federated.participation=0.8", "federated.chunk=1"]


def test_formats_change_on_many_clients():
    """Eight clients take two steps a round, and a search is due after four, so in every second round. What the server
    evaluates is the mean of the clients' formats, rounded."""
    words = ["federated=fedavg", "federated.clients=8", "federated.local_steps=2", "federated.rounds=5"]
    words += ["quantization.min_lookback=4", "quantization.max_lookback=4", "quantization.buffer=6"]
    run, algorithm = federation(*DATA, *PLAIN, "quantization=adapt", *words)
    layer = next(module for module in run.model.modules() if isinstance(module, Quantized)).quantize_w
    clients, seen = algorithm.clients, []
    for _ in range(5):
        rounds(run, algorithm, 1)
        formats = [next(iter(clients.states[k]["quantization"]["formats"].values())) for k in range(8)]
        for number, mean in zip((layer.word, layer.fraction), torch.tensor(formats).double().T @ weights(clients)):
            assert int(number) == round(mean.item())
        seen.append(formats)
        counts = [next(iter(clients.states[k]["quantization"]["layers"].values()))["n"] for k in range(8)]
        assert counts == [2 * (len(seen) % 2)] * 8
    assert seen[0] == [[8, 4]] * 8  # two steps
    assert seen[1] == seen[2] and all(own != [8, 4] for own in seen[1])  # four, and six


def weights(clients) -> torch.Tensor:
    sizes = torch.tensor([len(rows) for rows in clients.rows], dtype=torch.float64)
    return sizes / sizes.sum()


def test_step_sizes_freeze_on_many_clients():
    """A period of five is over in the third round of two steps; before it no client has any, and the gradients of what
    is frozen afterwards are the smooth ones alone."""
    words = ["federated=fedavg", "federated.clients=3", "federated.local_steps=2", "federated.rounds=4"]
    words += ["quantization.period=5", "quantization.threshold=1", "sharpness=sam"]
    run, algorithm = federation(*DATA, *PLAIN, "quantization=gaqat", *words)
    states = algorithm.clients.states
    for round_ in range(4):
        rounds(run, algorithm, 1)
        for client in range(3):
            own = states[client]["quantization"]
            assert own["updates"] == 2 * (round_ + 1)
            assert own["frozen"].bool().all() == own["frozen"].any() == (round_ >= 2)  # one change in five is too few
    assert not torch.equal(states[0]["quantization"]["sign"], states[1]["quantization"]["sign"])


@pytest.mark.parametrize("option", COUNTING)
def test_what_is_kept_is_the_clients_own(option):
    """After training with others in between, a client's state is that of a client that is trained alone from the same
    weights: nothing of the others is in it."""
    words = [*words_of(option), *MANY, "federated=fedavg", "federated.rounds=3", "federated.local_steps=3"]
    states = []
    for others in ([], [3, 0]):
        run, algorithm = federation(*words)
        clients = algorithm.clients
        for round_ in range(2):
            for client in [*others, 1]:
                updates = clients.alone(client, round_, algorithm.weights.data, algorithm.buffers)
                clients.states |= zip(updates.clients, updates.states)
        states.append((clients.states[1], updates.delta))
        assert set(clients.states) == {*others, 1}
        if others:
            with pytest.raises(AssertionError):
                assert_same(clients.states[1], clients.states[3], atol=1e-9)
    assert_same(*states, atol=0)


def resume_words(option: str) -> list[str]:
    group, _, name = option.partition("=")
    return [*DATA, *MANY, *EARLY.get(name, []), option, "federated=scaffold", "federated.rounds=3"]


REMEMBERING = [*COUNTING, "hook=saf", "loss=elr", "loss=aldr_kl", "risk=spectral risk.memory=true", "fp16"]


@pytest.mark.parametrize("after", [8, 12, 19])
@pytest.mark.parametrize("option", REMEMBERING)
def test_stopped_within_a_client_and_resumed_bit_for_bit(option, after, tmp_path, monkeypatch):
    words = resume_words(option) if option != "fp16" else [*resume_words("loss=ce"), "train.precision=fp16"]
    words = [part for word in words for part in word.split(" ")]
    whole, algorithm = federation(*words, double=False)
    rounds(whole, algorithm)

    run, algorithm = federation(*words, double=False)
    run.record.folder = tmp_path
    step, left = Trainer.step, after

    def counted(self, batch):
        nonlocal left
        left -= 1
        if left == 0:
            self.stop = "test"
        return step(self, batch)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "step", counted)
        rounds(run, algorithm)
    other, again = federation(*words, double=False)
    other.load_state_dict(checkpoint.load(tmp_path / "last.pt"))
    assert other.count < 3
    rounds(other, again, 3 - other.count)
    mine, theirs = other.state_dict(), whole.state_dict()
    for state in (mine, theirs):
        for apart in ("seconds", "hooks", "random"):  # the hooks' are those of the last client in this process
            state.pop(apart)
    assert_same(mine, theirs, atol=0)
    assert_same(again.state_dict(), whole.hooks.named["federated"].state_dict(), atol=0)


@pytest.mark.parametrize("option", COUNTING)
def test_processes_keep_it_to_the_same_bits(option, cores, monkeypatch):  # noqa: F811
    ends = []
    for least in (0.0, 1e9):
        monkeypatch.setattr("runner.federated.cores.FORK", least)
        run, algorithm = federation(*resume_words(option), double=False)
        before = cores()
        rounds(run, algorithm)
        assert (cores() > before) == (least == 0.0)
        ends.append((run.weights.clone(), algorithm.state_dict(), run.sums()))
    assert ends[0][1]["clients"].keys() == {client for chosen, _ in algorithm.plan for client in chosen}
    assert_same(*ends, atol=0)


@pytest.mark.parametrize("option", COUNTING)
def test_what_counts_goes_one_after_another(option):
    run, algorithm = federation(*resume_words(option)[:-2], "federated=fedavg", "federated.chunk=4")
    assert "not made for replicas" in algorithm.clients.apart()


@pytest.mark.parametrize("option", ["quantization=reste", "quantization=biper"])
def test_schedules_of_a_client_are_its_own(option):
    """Not the mean of all clients', which the server makes of buffers: clients of unlike sizes take equally many steps
    in a round, so that they are in different epochs."""
    words = [*SKEWED, "model.hidden=[12,12]", option, "federated=fedavg", "federated.local_steps=5"]
    run, algorithm = federation(*words, "train.batch_size=8", "federated.rounds=4", "federated.chunk=1")
    layer = next(module for module in run.model.modules() if isinstance(module, Quantized)).quantize_w
    gradient, found = run.gradient, set()

    def noted(batch, note=True):
        epochs = -(-run.steps // run.steps_per_epoch)
        if option == "quantization=reste":
            expected = power(run.count // run.steps_per_epoch, epochs, 3.0)
        else:
            expected = 2 if run.count >= run.steps * 2 / 3 else 1
        now = getattr(layer, "o" if option == "quantization=reste" else "stage").item()
        assert now == pytest.approx(expected, rel=1e-6)
        found.add((run.steps_per_epoch, now))
        return gradient(batch, note)

    run.gradient = noted
    rounds(run, algorithm)
    assert len({per_epoch for per_epoch, _ in found}) > 2 and len({now for _, now in found}) > 1


# ---- the server
