"""Each transform against its definition."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from runner.core.mistake import ConfigError
from runner.transform.groupnorm import GroupNormalisation
from runner.transform.lora import Low
from runner.transform.magnitude import Magnitude, largest
from runner.transform.maps import effective, mapped
from tests.engine.test_replicas import assert_pack_equals_alone
from tests.test_compose import assert_resumed_equals_whole
from tests.tiny import command, trainer

SMALL = ["dataset.subset=60", "train.batch_size=20", "model.hidden=[8,8]"]
RESNET = ["dataset.subset=24", "train.batch_size=6", "model=resnet20", "model.depth=8"]


# ---- group normalisation


def test_groupnorm_is_its_formula_and_the_rest_stays():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12, eps=1e-3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(48)
    )
    for norm in (model[1], model[4]):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    before = copy.deepcopy(model)
    made = GroupNormalisation(8).prepare(model, None)
    assert [made[1].num_groups, made[4].num_groups] == [4, 8]
    x = torch.randn(3, 2, 4, 4)
    now = before[0](x)
    for norm, groups in ((before[1], 4), (before[4], 8)):
        parts = now.detach().numpy().reshape(3, groups, -1)
        normal = (parts - parts.mean(2, keepdims=True)) / np.sqrt(parts.var(2, keepdims=True) + norm.eps)
        shape = (1, -1) + (1,) * (now.dim() - 2)
        normal = normal.reshape(now.shape) * norm.weight.detach().numpy().reshape(shape)
        now = torch.from_numpy(normal + norm.bias.detach().numpy().reshape(shape))
        if norm is before[1]:
            now = before[3](before[2](now))
    torch.testing.assert_close(made(x), now, rtol=1e-4, atol=1e-5)


def test_groupnorm_keeps_activations_that_timm_puts_into_a_norm():
    import timm

    model = timm.create_model("test_efficientnet", num_classes=4)
    acts = sum(isinstance(module, nn.SiLU | nn.ReLU | nn.GELU) for module in model.modules())
    made = GroupNormalisation().prepare(model, None)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in made.modules())
    assert sum(isinstance(module, nn.SiLU | nn.ReLU | nn.GELU) for module in made.modules()) == acts
    assert made(torch.randn(2, 3, 160, 160)).shape == (2, 4)


def test_groupnorm_takes_one_sample_and_has_no_statistics(tmp_path):
    run = trainer(*RESNET, "transform=groupnorm", "sharpness.m=1", "optim=sam")
    assert not run.norms and not run.buffers
    run.step(next(iter(run.loader.epoch(0))))
    assert_resumed_equals_whole(
        ["dataset.subset=32", *RESNET[2:], "transform=groupnorm", "train.accumulate=2"], 6, tmp_path
    )
    with pytest.raises(ConfigError, match="transform=groupnorm: Mlp has no BatchNorm to replace"):
        trainer(*SMALL, "transform=groupnorm")


# ---- low rank


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(3, 4, 3)])
def test_low_is_w_plus_ba_by_hand_and_starts_at_w(layer):
    torch.manual_seed(0)
    low = Low(layer.weight.detach(), 2, 1.5)
    assert torch.equal(low(layer.weight), layer.weight)
    bound = 1 / math.sqrt(low.a.shape[1])  # of variance 1 / (3 n)
    assert low.a.abs().max() <= bound and low.a.std() > 0.4 * bound
    nn.init.normal_(low.b)
    w, a, b = (value.detach().double().numpy() for value in (layer.weight, low.a, low.b))
    expected = w + 1.5 * np.einsum("or,ri->oi", b, a).reshape(w.shape)
    np.testing.assert_allclose(low(layer.weight).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    words = [*RESNET, "train.epochs=1", f"outputs_dir={folder}", "device=cpu"]
    done = command(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return next(path.parent for path in folder.rglob("result.json"))


def test_lora_starts_from_the_checkpoint_bit_for_bit_and_trains_a_few(base):
    words = [*RESNET, f"checkpoint={base}", "optim.weight_decay=0"]
    run, plain = (trainer(*words, *more) for more in (["transform=lora"], []))
    x = next(iter(run.loader.epoch(0))).x
    run.model.eval(), plain.model.eval()
    assert torch.equal(run.model(x).logits, plain.model(x).logits)
    run.model.train(), plain.model.train()
    assert not any("random" in line for line in run.notices)
    trained = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    convolutions = [n for n, module in plain.model.named_modules() if isinstance(module, nn.Conv2d)]
    assert trained == {f"{n}.maps.0.{part}" for n in convolutions for part in "ab"} | {"head.weight", "head.bias"}
    before = copy.deepcopy(run.model.state_dict())
    run.step(next(iter(run.loader.epoch(0))))
    after = run.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {name for name in before if "running" in name or "num_batches" in name}
    b = {name for name in trained if not name.endswith(".a")}  # at the first step A has no gradient, as B is 0
    assert changed - statistics == b


def test_lora_says_that_it_adapts_random_weights_and_refuses_what_names_nothing():
    assert any("random ones" in line for line in trainer(*SMALL, "transform=lora").notices)
    with pytest.raises(ConfigError, match="transform=lora: no tensor is called 'haed\\*'; the nearest are head"):
        trainer(*SMALL, "transform=lora", "transform.lora.also=[haed*]")
    with pytest.raises(ConfigError, match="transform=lora: no Linear or Conv2d is called 'x'"):
        trainer(*SMALL, "transform=lora", "transform.lora.skip=[x]")
    with pytest.raises(ConfigError, match="is trained whole"):
        trainer(*SMALL, "transform=lora", "transform.lora.also=['*']")


@pytest.mark.parametrize(
    "words",
    [
        ["optim=sam", "train.accumulate=2", "hook=ema", "optim.weight_decay=0.01"],
        ["train.precision=fp16", "groups=no_decay", "optim=adamw"],
        ["quantization=lsq", "quantization.begin=0.5", "train.precision=bf16"],
    ],
    ids=str,
)
def test_lora_and_masks_go_through_the_rest_and_are_resumed(words, tmp_path):
    own = ["dataset.subset=32", "model.hidden=[12,12]", "transform=[lora,magnitude]", "transform.magnitude.every=2"]
    assert_resumed_equals_whole([*own, "transform.magnitude.end=0.8", *words], 6, tmp_path)


def test_lora_of_clients_is_averaged():
    words = [*SMALL, "transform=lora", "federated=fedavg", "federated.clients=2", "federated.rounds=1"]
    run = trainer(*words, "federated.minimum=2")
    before = run.weights.clone()
    for _ in run.hooks.named["federated"].one_round(run, 0):
        pass
    assert not torch.equal(before, run.weights.data)
    assert run.weights.count < 600


# ---- pruning


def test_the_share_is_the_cubic_of_the_paper():
    change = Magnitude(initial=0.2, final=0.8, begin=0.1, end=0.6, every=10)
    found = {t: change.share(t, 100) for t in range(100) if change.share(t, 100) is not None}
    assert list(found) == [10, 20, 30, 40, 50, 60]
    for t, share in found.items():
        assert share == pytest.approx(0.8 - 0.6 * (1 - (t - 10) / 50) ** 3)
    assert found[10] == pytest.approx(0.2) and found[60] == 0.8
    assert list(t for t in range(100) if Magnitude(end=0.25, every=10).share(t, 100) is not None) == [0, 10, 20, 25]
    assert Magnitude(begin=0.5, end=0.5).share(50, 100) == 0.9
    with pytest.raises(ValueError, match="end=0.2 is before begin=0.5"):
        Magnitude(begin=0.5, end=0.2)


def test_the_smallest_go_and_of_equal_ones_the_first():
    w = torch.tensor([[3.0, -1.0, 0.5], [-0.5, 2.0, 0.5]])
    assert largest(w, 0.5).tolist() == [[True, True, False], [False, True, False]]
    assert largest(w, 0.34).tolist() == [[True, True, False], [False, True, True]]
    assert largest(w, 0.0).all() and largest(torch.zeros(4), 0.75).tolist() == [False, False, False, True]


def test_masked_weights_have_no_gradient_keep_their_value_and_may_come_back():
    words = [*SMALL, "optim.momentum=0", "optim.weight_decay=0", "train.steps=9", "transform=magnitude"]
    words += ["transform.magnitude.every=1", "transform.magnitude.end=0.7", "transform.magnitude.skip=[head]"]
    run = trainer(*words)
    assert mapped(run.model) == ["body.1", "body.3"]
    shares, layer = [], run.model.body[1]
    batches = [batch for epoch in range(3) for batch in run.loader.epoch(epoch)]
    for count, batch in enumerate(batches):
        before = layer.weight.detach().clone()
        run.step(batch)
        mask = layer.maps[0].mask
        shares.append(1 - mask.float().mean().item())
        assert torch.equal(layer.weight[~mask], before[~mask])
        assert not torch.equal(layer.weight[mask], before[mask])
        assert not dict(run.weights.views(run.weights.grad))["body.1.weight"][~mask].any()
        if count <= 7:
            assert torch.equal(mask, largest(before, 0.9 - 0.9 * (1 - count / 7) ** 3))
        assert torch.equal(effective(layer), layer.weight * mask)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(0.9, abs=0.01)
    assert run.report["sparsity"] == pytest.approx(0.9, abs=0.01)


def test_masks_are_of_what_the_maps_before_make(tmp_path):
    run = trainer(*SMALL, "transform=[lora,magnitude]", "transform.magnitude.every=1", "train.steps=6")
    for batch in run.loader.epoch(0):
        before = run.model.body[1].maps[0](run.model.body[1].weight).detach().clone()
        run.step(batch)
    low, masked = run.model.body[1].maps
    assert torch.equal(masked.mask, largest(before, 0.9 - 0.9 * (1 - 2 / 3) ** 3))
    assert run.weights.count == sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    assert low.b.any()


def test_a_pruned_run_says_so_and_records_it(tmp_path):
    words = [*SMALL, "transform=magnitude", "transform.magnitude.every=1", "transform.magnitude.final=0.75"]
    done = command(*words, "train.epochs=2", f"outputs_dir={tmp_path}", "device=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "transform=[magnitude]" in done.stdout
    assert "note    transform=magnitude changes masks until step 3 of 6" in done.stdout
    result = next(tmp_path.rglob("result.json")).read_text()
    assert '"sparsity": 0.75' in result
    late = trainer(*SMALL, "transform=magnitude", "transform.magnitude.begin=1", "transform.magnitude.end=1")
    assert sum(line.startswith("transform=magnitude") and "comes after" in line for line in late.notices) == 2


def test_federations_are_refused():
    words = [*SMALL, "transform=magnitude", "federated=fedavg", "federated.clients=2", "federated.minimum=2"]
    with pytest.raises(ConfigError, match="transform=magnitude would have other masks in every client"):
        trainer(*words)


def test_packs_have_masks_of_their_own():
    words = [*SMALL, "transform=magnitude", "transform.magnitude.every=2", "train.steps=8", "quantization=lsq"]
    cells = [[*words, "seed=0"], [*words, "seed=1", "transform.magnitude.final=0.5"]]

    def make(wanted):
        return [trainer(*cell, double=True) for cell in wanted]

    assert_pack_equals_alone(make, cells, steps=6, atol=1e-9)


# ---- frozen weights


def test_what_is_frozen_stays_and_the_rest_trains_as_if_it_were_all_there_is():
    """A linear probe is softmax regression on the features: with SGD the head's steps by hand."""
    words = ["dataset.subset=60", "dataset.val=0", "train.batch_size=20", "model.hidden=[16]", "schedule=constant"]
    words += ["transform=freeze", "optim.lr=0.5", "optim.momentum=0", "optim.weight_decay=0.1"]
    run = trainer(*words, double=True)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    assert run.weights.count == 16 * 10 + 10 and run.notices == [
        "transform=freeze: 1,040 of 1,210 weights stay as they are"
    ]
    w, b = (before[f"head.{key}"].clone() for key in ("weight", "bias"))
    for batch in run.loader.epoch(0):
        h = (batch.x.flatten(1) @ before["body.1.weight"].T + before["body.1.bias"]).relu()
        off = (h @ w.T + b).softmax(-1) - torch.nn.functional.one_hot(batch.y, 10)
        w, b = w - 0.5 * (off.T @ h / 20 + 0.1 * w), b - 0.5 * (off.mean(0) + 0.1 * b)
        run.step(batch)
    after = run.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("body"))
    torch.testing.assert_close(after["head.weight"], w)
    torch.testing.assert_close(after["head.bias"], b)


def test_frozen_layers_by_pattern_and_their_statistics():
    run = trainer(*RESNET, "transform=freeze", "transform.freeze.patterns=[body.?.*,*.bias]")
    frozen = {name for name, parameter in run.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {n for n, _ in run.model.named_parameters() if n.startswith("body.") or n.endswith("bias")}
    assert any("statistics of normalisation layers still follow the batches" in line for line in run.notices)


@pytest.mark.parametrize(
    "patterns, line",
    [("[bodi.*]", "no parameter's name matches bodi.*; one is called body."), ("['*']", "nothing is left to train")],
)
def test_nothing_to_freeze_or_to_train_is_one_line(patterns, line):
    with pytest.raises(ConfigError, match=line.replace("*", r"\*")):
        trainer("model.hidden=[16]", "transform=freeze", f"transform.freeze.patterns={patterns}")


@pytest.mark.parametrize(
    "words, line",
    [(["quantization=adapt"], "quantization=adapt chooses formats by gradients, and body.1 has none"),
     (["optim=muon"], "muon is for hidden matrices, and this model has none")],
)  # fmt: skip
def test_what_goes_by_frozen_weights_refuses_them(words, line):
    with pytest.raises(ConfigError, match=line):
        trainer("model.hidden=[16]", "transform=freeze", *words)
