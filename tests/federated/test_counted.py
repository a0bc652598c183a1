"""Steps that count, and what is the server's: refused, skipped and unsaid in no client."""

import copy

import pytest
import torch

from runner.command.listing import conf_dir, options
from runner.core.mistake import ConfigError
from runner.federated.clients import Updates
from runner.hook import Hook
from runner.quantization.fake import Quantized
from tests.engine.test_replicas import assert_same
from tests.federated.made import DATA, NORMED, SKEWED, federation, rounds
from tests.federated.test_state import PLAIN
from tests.tiny import trainer

# ---- who does not end a round leaves nothing behind


def test_a_refused_client_leaves_no_loss_scale_and_no_memory():
    """Its loss is not finite at any scale, which is halved until it is below one; the others train at theirs."""
    words = [*SKEWED, "federated=fedavg", "federated.rounds=2", "train.precision=fp16", "loss=elr", "dataset.val=0"]
    run, algorithm = federation(*words, "federated.local_steps=40", double=False)
    run.loader._train.base = run.loader._train.base.clone().float()
    rows = algorithm.clients.rows[0]
    run.loader._train.base[rows if run.loader._train.rows is None else run.loader._train.rows[rows]] = float("nan")
    others, healthy = federation(*words, "federated.local_steps=40", double=False)
    healthy.plan = [([client for client in chosen if client != 0], []) for chosen, _ in healthy.plan]
    said = []
    run.tell = said.append
    rounds(run, algorithm), rounds(others, healthy)
    assert sum("client 0 is refused" in line for line in said) == 2
    assert run.precision.scale.state_dict() == others.precision.scale.state_dict()
    assert torch.equal(run.weights.data, others.weights.data)
    assert torch.equal(run.loss.targets, others.loss.targets) and not run.loss.targets[rows].any()


# ---- steps that count

HIGH = 2.0**24  # a loss scale at which the first steps overflow


@pytest.mark.parametrize("name", ["scaffold", "fednova"])
def test_skipped_steps_do_not_count(name):
    words = [*SKEWED, f"federated={name}", "federated.rounds=1", "train.precision=fp16", "federated.local_steps=14"]
    run, algorithm = federation(*words, "optim.momentum=0", "optim.lr=0.05", double=False)
    run.precision.scale.value = HIGH
    step, moved, found = run.step, {}, {}

    def watched(batch):
        before, client = run.weights.clone(), run.masks.seeds[0] >> 32
        loss = step(batch)
        moved[client] = moved.get(client, 0) + (not torch.equal(before, run.weights.data))
        return loss

    collect = algorithm.collect

    def take(updates):
        found[updates.clients[0]] = updates
        collect(updates)

    run.step, algorithm.collect = watched, take
    rounds(run, algorithm)
    assert run.precision.scale.skipped > 3 and min(moved.values()) < 14 == max(moved.values())
    for client, updates in found.items():
        assert updates.steps.item() == moved[client]
        assert updates.rates.item() == pytest.approx(0.05 * moved[client])
    if name == "scaffold":  # c_k is the mean gradient, whatever was skipped
        first = min(moved, key=moved.get)
        torch.testing.assert_close(algorithm.own[first], -found[first].delta[0] / (0.05 * moved[first]))


def test_fednova_leaves_out_who_took_no_step():
    """p = 1/2 each; a client of two steps went 4, the other took none: d = 2 * (4 / 2) = 4."""
    run, algorithm = federation(*SKEWED, "federated=fednova", "optim.momentum=0")
    delta = torch.zeros(2, len(algorithm.weights), dtype=torch.float64)
    delta[0, 0] = 4.0
    numbers = torch.tensor([[5.0, 5.0], [2.0, 0.0], [0.2, 0.0]], dtype=torch.float64)
    algorithm.begin_round()
    algorithm.collect(Updates([0, 1], *numbers, delta, [b.unsqueeze(0).repeat(2, 1) for b in algorithm.buffers]))
    assert algorithm.direction()[0].item() == pytest.approx(4.0)
    algorithm.begin_round()
    nobody = Updates([1], *numbers[:, 1:], delta[1:], [b.unsqueeze(0) for b in algorithm.buffers])
    algorithm.collect(nobody)
    assert not algorithm.direction().any()


@pytest.mark.parametrize("name", [name for name in options("federated", [conf_dir()]) if name != "none"])
@pytest.mark.parametrize(
    "words, chunk", [(["optim.lr=0"], 3), (["schedule=linear", "federated.local_steps=1"], 1)], ids=["0", "to 0"]
)
def test_a_learning_rate_of_zero(words, chunk, name, monkeypatch):
    """Clients that go nowhere, in all rounds or in the last alone."""
    from runner.schedule.linear import Linear

    if words[0] != "optim.lr=0":  # the last step's factor exactly
        monkeypatch.setattr(Linear, "__call__", lambda self, step, steps, _: 1 - step / max(steps - 1, 1))
    run, algorithm = federation(*SKEWED, *words, f"federated={name}", "federated.rounds=3", f"federated.chunk={chunk}")
    start = run.weights.clone()
    rounds(run, algorithm, 2)
    before = copy.deepcopy(getattr(algorithm, "own", None))
    rounds(run, algorithm, 1)
    assert torch.isfinite(run.weights.data).all() and torch.equal(start, run.weights.data) == (words[0] == "optim.lr=0")
    if name == "scaffold":
        assert torch.isfinite(algorithm.c).all()
        assert_same(algorithm.own, before, atol=0)


@pytest.mark.parametrize(
    "words, off", [(["optim.nesterov=true"], "nesterov=false"), (["optim.dampening=0.5"], "dampening=0")]
)
def test_fednova_refuses_what_its_weights_are_not_for(words, off):
    with pytest.raises(ConfigError, match=f"fednova's a_k is that of SGD with plain momentum: set optim.{off}"):
        federation(*SKEWED, "federated=fednova", "optim.momentum=0.9", *words)
    federation(*SKEWED, "federated=fedavg", "optim.momentum=0.9", *words)


def test_fednova_says_what_it_takes_another_optimizer_for():
    run, _ = federation(*SKEWED, "federated=fednova", "optim=adamw")
    assert any("AdamW's update is no weighted sum" in line or "Adam's update is no" in line for line in run.notices)
    run, _ = federation(*SKEWED, "federated=fednova", "optim.momentum=0.9")
    assert not run.notices


# ---- the server


def test_fedce_measures_without_an_average_of_weights():
    words = ["federated=fedce", "federated.rounds=3", "dataset.val=0.4", "dataset.subset=400", "optim.lr=0.5"]
    ends = []
    for more in ([], ["hook=ema", "hook.ema.decay=0.99", "hook.ema.warm=false"]):
        run, algorithm = federation(*SKEWED, *words, *more)
        rounds(run, algorithm)
        ends.append((algorithm.found, run.weights.clone()))
    assert_same(*ends, atol=0)


def test_statistics_with_as_many_channels_as_samples_are_averaged():
    """They are no memory of the samples: 16 channels, 16 training samples."""
    words = [*NORMED, "device=cpu", "dataset.subset=16", "dataset.val=0", "federated=fedavg", "federated.clients=2"]
    for chunk in (1, 2):
        run, algorithm = federation(*words, "federated.minimum=2", "federated.rounds=1", f"federated.chunk={chunk}")
        assert len(run.dataset.train) == 16
        norm = next(module for module in run.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
        assert norm.running_mean.shape == (16,)
        ends = [algorithm.clients.alone(k, 0, algorithm.weights.data, algorithm.buffers).buffers for k in (0, 1)]
        places = [id(buffer) for buffer in algorithm.clients.buffers]
        expected = sum(end[places.index(id(norm.running_mean))][0] for end in ends) / 2
        rounds(run, algorithm)
        torch.testing.assert_close(norm.running_mean, expected)


class Both(Hook):
    """A penalty, and an average that is evaluated."""

    def loss(self, run, out, batch):
        return out.logits.new_zeros(())

    def weights(self, run):
        return run.weights.restored()


def test_what_a_servers_hook_does_not_do_is_said():
    from runner.federated.clients import Clients

    run, algorithm = federation(*SKEWED, "federated=fedavg")
    assert not run.notices
    run.hooks.named["both"] = Both()
    run.hooks = type(run.hooks)(run.hooks.named)
    clients = Clients(run, algorithm.clients.rows, 2, 1, None, None, 0)
    (line,) = clients.notices(nobodys=0)
    assert "hook=both" in line and line.endswith("do not call its loss")


def test_samples_that_nobody_has_are_said_where_all_are_remembered():
    words = [*DATA, "federated=fedavg", "federated.clients=2", "federated.partition=labels", "federated.labels=2"]
    for loss, said in (("ce", False), ("elr", True)):
        run, algorithm = federation(*words, f"loss={loss}")
        assert (algorithm.partition.owner < 0).any()
        assert any("belong to no client" in line for line in run.notices) == said


def test_clients_side_by_side_are_in_the_same_epoch_where_hooks_may_ask():
    """Equal steps in a round are not equal epochs."""
    run, algorithm = federation(*SKEWED, "federated=fedavg", "federated.local_steps=4", "hook=clip")
    clients = algorithm.clients
    for part in clients.chunks(list(range(6)), 6):
        assert len({clients.per_epoch[client] for client in part}) == 1
    assert len(set(clients.per_epoch)) > 1


class Counting(torch.optim.SGD):
    """An optimizer that counts in its group, and in a number of its own makes the first step twice as long."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.param_groups[0]["step"] = 0

    def step(self, closure=None):
        group = self.param_groups[0]
        group["lr"] *= 2 if group["step"] == 0 else 1
        group["step"] += 1
        return super().step(closure)


def test_what_an_optimizer_counts_beside_its_state_is_fresh_too():
    """By all clients alike: each of two with the same samples goes as far."""
    words = [*SKEWED, "federated=fedavg", "federated.chunk=1", "~optim.momentum", "~optim.weight_decay"]
    words += ["~optim.nesterov", "~optim.dampening"]
    run, algorithm = federation(*words, f"optim._target_={__name__}.Counting")
    clients = algorithm.clients
    clients.rows[4] = clients.rows[1]
    for own in (clients.kept, clients.steps, clients.per_epoch):
        own[4] = own[1]
    ends = [clients.alone(k, 0, algorithm.weights.data, algorithm.buffers).delta for k in (1, 4)]
    assert torch.equal(*ends) and run.optimizer.param_groups[0]["step"] == clients.steps[1]


def test_bounds_of_a_range_stay_together():
    """Two clients of equal size whose zero points are 7 and 8: both bounds are rounded up from a half."""
    words = ["federated=fedavg", "federated.clients=2", "federated.rounds=1", "quantization=lsq", "dataset.val=0"]
    words += ["quantization.affine=true", "quantization.range=minmax", "quantization.bits=4"]
    run, algorithm = federation(*DATA, *words)
    layer = next(module for module in run.model.modules() if isinstance(module, Quantized)).quantize_w
    places = [id(buffer) for buffer in algorithm.clients.buffers]
    low, high = places.index(id(layer.low)), places.index(id(layer.high))
    ones = torch.ones(2, dtype=torch.float64)
    buffers = [buffer.unsqueeze(0).repeat(2, *[1] * buffer.dim()) for buffer in algorithm.buffers]
    buffers[low], buffers[high] = torch.tensor([-7, -8]), torch.tensor([8, 7])
    algorithm.begin_round()
    algorithm.collect(Updates([0, 1], ones, ones, ones, torch.zeros(2, len(algorithm.weights)).double(), buffers))
    algorithm._serve(run)
    assert [int(algorithm.buffers[place]) for place in (low, high)] == [-7, 8]


@pytest.mark.parametrize("option", ["quantization=adapt", "quantization=gaqat"])
def test_what_a_clients_own_steps_do_not_reach_is_said(option):
    """Ten steps in all rounds would do, and those of the two rounds that a client takes part in do not."""
    words = [*DATA, *PLAIN, option, "federated=fedavg", "federated.clients=4", "federated.rounds=5", "sharpness=sam"]
    words += ["federated.local_steps=2", "schedule=constant"]
    after = {
        "quantization=adapt": ["quantization.min_lookback=7", "quantization.max_lookback=7"],
        "quantization=gaqat": ["quantization.period=7"],
    }
    words += after[option]
    run, algorithm = federation(*words)
    assert not run.notices
    run, algorithm = federation(*words, "federated.participation=0.25")
    most = 2 * max(sum(client in chosen for chosen, _ in algorithm.plan) for client in range(4))
    (line,) = run.notices
    assert most <= 6 and f"steps of a client, and there are {most}: " in line


def test_of_a_diverged_network_nothing_is_deployed():
    from runner.quantization import deploy

    run = trainer(*DATA, "quantization=lsq")
    nothing = {"test_accuracy": float("nan"), "val_accuracy": float("nan")}
    deploy.compare(run, nothing, nothing, ("a", "b"))
    with pytest.raises(RuntimeError, match="not what was trained"):
        deploy.compare(run, {"test_accuracy": 0.9, "val_accuracy": 0.9}, nothing, ("a", "b"))
    run.weights.data[0] = float("nan")
    assert deploy.report(run, None, None) is None
