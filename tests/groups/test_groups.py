"""Roles of tensors, groups of them with factors of their own, and what is said."""

import copy

import pytest
import torch
from torch import nn

from runner.core.layout import named
from runner.core.mistake import ConfigError
from runner.groups import Groups
from tests.tiny import trainer

WORDS = ["dataset.subset=60", "train.batch_size=20", "model=cnn", "model.widths=[4,8]", "model.hidden=8"]


class Gain(nn.Module):
    """A class token, a scale, and a normalisation of one's own."""

    def __init__(self):
        super().__init__()
        self.token, self.gamma = nn.Parameter(torch.zeros(1, 1, 6)), nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.gamma * (x + self.token[0])


class MyRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))


class LayerNorm2d(nn.LayerNorm): ...


def test_roles_go_by_modules():
    model, loss = nn.Module(), nn.Module()
    model.body = nn.Sequential(nn.Embedding(5, 6), Gain(), MyRMSNorm(), nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    model.body.append(LayerNorm2d(6)), model.body.append(nn.Linear(6, 6))
    model.head = nn.Linear(6, 4)
    loss.alpha, loss.weight = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(4, 6))
    loss.tied = model.head.weight
    assert {tensor.name: tensor.role for tensor in named(model, loss)} == {
        "body.0.weight": "embedding",
        "body.1.token": "embedding",
        "body.1.gamma": "bias",
        "body.2.weight": "norm",
        "body.3.weight": "matrix",
        "body.3.bias": "bias",
        "body.4.weight": "norm",
        "body.4.bias": "norm",
        "body.5.weight": "norm",
        "body.5.bias": "norm",
        "body.6.weight": "matrix",
        "body.6.bias": "bias",
        "head.weight": "head",
        "head.bias": "bias",
        "alpha": "other",
        "weight": "head",
    }


def test_of_timm_they_are_what_timm_says():
    import timm
    from timm.optim import param_groups_weight_decay

    model = timm.create_model("test_vit")
    spared = {tensor.name for tensor in named(model) if tensor.role in ("bias", "norm", "embedding")}
    theirs = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())[0]["params"]
    ids = {id(parameter) for parameter in theirs}
    assert spared == {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def test_decay_leaves_biases_and_norms_alone():
    """One step of SGD with a gradient of zero is decay and nothing else."""
    words = [*WORDS[:2], "model=resnet20", "model.depth=8", "groups=no_decay"]
    run = trainer(*words, "optim.weight_decay=0.5", "optim.lr=0.1", "optim.momentum=0")
    with torch.no_grad():
        run.weights.data.normal_()
        before = {name: view.clone() for name, view in run.weights.views(run.weights.data)}
    for group in run.optimizer.param_groups:
        group["lr"] = 0.1
    run.weights.zero_grad()
    run.optimizer.step()
    roles = {tensor.name: tensor.role for tensor in named(run.model)}
    assert set(roles.values()) == {"matrix", "bias", "norm", "head"} and len(run.weights.slices) == 2
    for name, view in run.weights.views(run.weights.data):
        torch.testing.assert_close(view, before[name] * (0.95 if roles[name] in ("matrix", "head") else 1.0))
    spared, all_ = sum(role in ("bias", "norm") for role in roles.values()), len(roles)
    assert f"groups=no_decay: {spared} of {all_} tensors (bias, norm) have lr x1, weight decay x0" in run.notices


@pytest.mark.parametrize("optim", ["sgd", "adamw", "sam", "muon", "third party"])
def test_it_trains_with_any_optimizer_and_goes_on_from_a_checkpoint(optim):
    words = [*WORDS, "groups=no_decay", "groups.patterns=['*.0.weight']"]
    words += (
        ["optim._target_=torch.optim.NAdam", "~optim.momentum", "~optim.dampening", "~optim.nesterov"]
        if optim == "third party"
        else [f"optim={optim}"]
    )
    words += ["optim.weight_decay=0.1"]
    run, again = trainer(*words), trainer(*words)
    decays = [group["weight_decay"] for group in run.optimizer.param_groups]
    assert sorted(set(decays)) == [0.0, 0.1]
    assert sum(len(group["params"]) for group in run.optimizer.param_groups) == len(
        run.weights.parameters if optim == "third party" else run.weights.slices
    )
    first, second, third = run.loader.epoch(0)
    run.step(first)
    again.load_state_dict(copy.deepcopy(run.state_dict()))
    for one in (run, again):
        one.step(second), one.step(third)
    assert torch.equal(run.weights.data, again.weights.data)


class Slow(Groups):
    """The classifier does not move, and the rest at half the rate."""

    def __call__(self, tensors):
        return [(0.0 if tensor.name.startswith("head") else 0.5, 1.0) for tensor in tensors]


def test_a_factor_of_the_rate_is_one_whatever_the_schedule_says():
    run = trainer(*WORDS, "groups._target_=tests.groups.test_groups.Slow", "optim.lr=0.2")
    whole = trainer(*WORDS, "optim.lr=0.1")
    head = run.model.head.weight.clone()
    for batch in run.loader.epoch(0):
        run.step(batch), whole.step(batch)
        assert [group["lr"] for group in run.optimizer.param_groups] == [
            pytest.approx(whole.optimizer.param_groups[0]["lr"]),
            0.0,
        ]
        break
    assert torch.equal(run.model.head.weight, head)
    same = dict(whole.weights.views(whole.weights.data))
    for name, view in run.weights.views(run.weights.data):
        if not name.startswith("head"):
            torch.testing.assert_close(view, same[name])


def test_what_cannot_be_is_one_line():
    with pytest.raises(ConfigError, match="groups: no trainable tensor is called 'bdoy.*'; the nearest are body"):
        trainer(*WORDS, "groups=no_decay", "groups.patterns=[bdoy.*]")
    with pytest.raises(ConfigError, match="groups.roles=.*must be a list where each element is one of matrix"):
        trainer(*WORDS, "groups=no_decay", "groups.roles=[biases]")
    with pytest.raises(ConfigError, match="scaffold's variates are updates by one learning rate"):
        slow = "groups._target_=tests.groups.test_groups.Slow"
        trainer(*WORDS, slow, "federated=scaffold", "federated.clients=2", "federated.minimum=2")


def test_what_has_no_effect_is_said():
    run = trainer(*WORDS, "groups=no_decay", "optim.weight_decay=0")
    assert "groups=no_decay has no effect: there is no weight decay in optim" in run.notices
    assert not any(line.startswith("groups") for line in trainer(*WORDS).notices)


def test_clients_side_by_side_have_the_groups_too():
    words = [*WORDS[:2], "model.hidden=[8]", "groups=no_decay", "optim.weight_decay=0.5", "federated=fedavg"]
    words += ["federated.clients=4", "federated.rounds=1", "federated.minimum=4", "dataset.subset=64"]
    ends = []
    for jobs in ("alone", "crew"):
        run = trainer(*words, double=True)
        algorithm = run.hooks.named["federated"]
        start, buffers = run.weights.clone(), [buffer.clone() for buffer in algorithm.clients.buffers]
        if jobs == "alone":
            ends.append(torch.cat([algorithm.clients.alone(c, 0, start, buffers).delta for c in range(2)]))
        else:
            from runner.federated.crew import Crew

            ends.append(Crew(algorithm.clients, 2).answers([0, 1], 0, start, buffers).delta)
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)
