"""The seam of transforms: their order, weight maps under everything that reads weights, and what is refused."""

import copy
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.core.mistake import ConfigError
from runner.quantization import deploy
from runner.quantization.fake import Quantized, plain
from runner.transform import Transform
from runner.transform.maps import MAPPED, Same, baked, effective, layers, mapped, put
from tests.conftest import ROOT
from tests.engine.test_replicas import assert_pack_equals_alone
from tests.test_compose import assert_resumed_equals_whole
from tests.tiny import command, trainer

SMALL = ["dataset.subset=60", "train.batch_size=20", "model.hidden=[8,8]"]
HALF = ["transform=magnitude", "transform.magnitude.initial=0.5", "transform.magnitude.final=0.5"]


class Double(nn.Module):
    def forward(self, w):
        return 2 * w


@pytest.mark.parametrize("kind", list(MAPPED))
def test_a_mapped_layer_computes_with_its_effective_weight(kind):
    torch.manual_seed(0)
    linear = kind is nn.Linear
    layer = nn.Linear(6, 4) if linear else kind(2, 4, 3, stride=2, groups=2)
    x = torch.randn(5, 6) if linear else torch.randn(5, 2, 9, 8)
    twin = copy.deepcopy(layer)
    put(layer, nn.Identity())
    assert torch.equal(layer(x), twin(x)) and isinstance(layer, kind)
    put(layer, Double()), put(layer, Double())
    with torch.no_grad():
        twin.weight.mul_(4)
    assert torch.equal(effective(layer), twin.weight) and torch.allclose(layer(x), twin(x))
    model = nn.Sequential(layer)
    plain_ = baked(model)
    assert type(plain_[0]) is kind and not mapped(plain_) and torch.equal(plain_(x), layer(x))
    assert mapped(model) == ["0"] and not plain_[0].weight.requires_grad


def test_layers_are_found_by_name_and_patterns_must_fit():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Conv2d(1, 1, 1), Same(1, 1, 1))
    assert list(layers(model)) == ["0", "2", "3"] and list(layers(model, ["[12]"])) == ["0", "3"]
    with pytest.raises(ValueError, match="no Linear or Conv2d is called 'a'"):
        layers(model, ["a"])
    with pytest.raises(ValueError, match="beside those"):
        layers(model, ["*"])
    with pytest.raises(ValueError, match="has no Linear or Conv2d layer"):
        layers(nn.ReLU())


# ---- with quantization


@pytest.mark.parametrize("quantization", ["lsq", "eq_net", "dorefa", "reste", "gaqat", "ptq", "adaround", "adaquant"])
def test_quantizers_see_the_effective_weight_and_deploy_it(quantization, tmp_path):
    words = [*SMALL, *HALF, f"quantization={quantization}", "quantization.ends=same"]
    words += ["optim=sam"] if quantization == "gaqat" else []
    words += [f"quantization.{key}=2" for key in ("steps",) if quantization in ("adaround", "adaquant")]
    run = trainer(*words, folder=tmp_path)
    for batch in run.loader.epoch(0):
        run.step(batch)
    named = dict(run.model.named_modules())
    assert [name for name in mapped(run.model)] == ["body.1", "body.3", "head"]
    zeros = {name: ~named[name].maps[0].mask for name in mapped(run.model)}
    assert all(0.45 < mask.float().mean() < 0.55 for mask in zeros.values())
    for layer in named.values():
        if isinstance(layer, Quantized):
            by_hand = layer.weight.detach() * layer.maps[0].mask
            assert torch.equal(layer.codes().decode(), layer.quantize_w.codes(by_hand).decode())
    x = next(iter(run.loader.epoch(0))).x
    run.model.eval()
    before = run.model(x).logits
    with torch.no_grad():  # what is pruned may be anything
        for name, pruned in zeros.items():
            named[name].weight[pruned] = 3.0
        assert torch.equal(run.model(x).logits, before)
        named["head"].weight[~zeros["head"]] *= -1.0
        assert not torch.equal(run.model(x).logits, before)
    run.model.train()
    if quantization in ("lsq", "ptq", "adaround", "adaquant"):  # grids that have a zero
        from runner.command.config import Train
        from runner.engine.assemble import Elsewhere, assemble, prepare  # the run's own transform
        from tests.tiny import compose

        config = compose(*words)
        prepare(0, run.train, run.device)
        run, _, transform, batch = assemble(config, Train(**config["train"]), run.device, Elsewhere(tmp_path))
        for batch_ in run.loader.epoch(0):
            run.step(batch_)
        found = deploy.report(run, transform, batch)
        model = deploy.stored(run.model, transform.convert(run.model, batch))
        for name, layer in deploy.layers(model).items():
            codes = layer.codes().decode()
            pruned = ~dict(run.model.named_modules())[name].maps[0].mask
            assert not codes[pruned].any() and codes.any()
        assert found["fake"] == found["deployed"]
        read = deploy.decode(torch.load(tmp_path / deploy.FILE, weights_only=True), model)
        x = next(iter(run.loader.epoch(1))).x
        model.eval()
        torch.testing.assert_close(read(x).logits, model(x).logits)


def test_the_plain_network_of_a_quantized_one_has_the_maps_still():
    run = trainer(*SMALL, *HALF, "quantization=lsq")
    run.step(next(iter(run.loader.epoch(0))))
    net, x = plain(run.model), next(iter(run.loader.epoch(0))).x
    expected = x.flatten(1)
    for name in ("body.1", "body.3", "head"):
        layer = run.model.get_submodule(name)
        expected = F.linear(expected, layer.weight * layer.maps[0].mask, layer.bias)
        expected = expected if name == "head" else expected.relu()
    torch.testing.assert_close(net(x).logits, expected)


@pytest.mark.parametrize("quantization", ["adapt", "biper", "self_compression", "littlebit"])
def test_what_goes_by_the_weights_themselves_is_refused(quantization):
    with pytest.raises(ConfigError, match=f"quantization={quantization} goes by the weights themselves"):
        trainer("dataset.subset=60", "model.hidden=[8,8,8]", *HALF, f"quantization={quantization}")


# ---- order


class Seen(Transform):
    """Notes what it was given."""

    log: list = []

    def __init__(self, when: str = "build"):
        self.when = when

    def prepare(self, model, batch):
        Seen.log.append((self.when, len(batch), float(model.head.weight.detach().sum())))
        return model


def test_build_comes_before_the_checkpoint_and_adapt_after_in_the_order_of_the_config(tmp_path):
    Seen.log.clear()
    done = command(*SMALL, "train.epochs=1", f"outputs_dir={tmp_path}", "device=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = [path.parent for path in tmp_path.rglob("result.json")]
    words = [f"+transform.{n}._target_=tests.transform.test_transform.Seen" for n in "abc"]
    words += ["+transform.a.when=adapt", "+transform.c.when=adapt"]
    run = trainer(*SMALL, *words, f"checkpoint={folder}")
    trained = torch.load(folder / "last.pt", weights_only=True)["model"]["head.weight"].sum().item()
    whens, sizes, sums = zip(*Seen.log, strict=True)
    assert whens == ("build", "adapt", "adapt") and sizes == (2, 2, 2)
    assert sums[0] != pytest.approx(trained) and sums[1:] == (pytest.approx(trained),) * 2
    assert run.model.head.weight.sum().item() == pytest.approx(trained)


def test_a_transform_that_returns_no_model_is_one_line():
    class_ = "+transform.a._target_=tests.transform.test_transform.Nothing"
    with pytest.raises(ConfigError, match=r"transform.a: Nothing.*prepare must return the model"):
        trainer(*SMALL, class_)


class Nothing(Transform):
    def prepare(self, model, batch):
        return None


# ---- the transform that DESIGN.md shows


@pytest.fixture
def standard(tmp_path, monkeypatch) -> str:
    text = (ROOT / "DESIGN.md").read_text().partition("from torch import nn  # standard.py")[2].partition("```")[0]
    assert 0 < len([line for line in text.splitlines() if line.strip()]) <= 20
    Path(tmp_path, "standard.py").write_text(f"from torch import nn{text}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "standard", raising=False)
    importlib.invalidate_caches()
    return "+transform.standard._target_=standard.Standard"


CNN = ["dataset.subset=32", "model=cnn", "model.widths=[4,8]", "model.hidden=8"]


def test_the_transform_shown_does_what_it_says(standard):
    run = trainer(*CNN, standard)
    assert mapped(run.model) and all(isinstance(run.model.get_submodule(n), nn.Conv2d) for n in mapped(run.model))
    for name in mapped(run.model):
        rows = effective(run.model.get_submodule(name)).detach().flatten(1).numpy()
        np.testing.assert_allclose(rows.mean(1), 0, atol=1e-6)
        np.testing.assert_allclose(rows.std(1, ddof=1), 1, rtol=1e-2)


@pytest.mark.parametrize(
    "words",
    [
        ["optim=sam", "train.accumulate=2", "hook=ema"],
        ["quantization=lsq", "train.precision=bf16", "optim=adamw", "groups=no_decay", "optim.weight_decay=0.1"],
        ["train.precision=fp16", "optim=muon"],
    ],
    ids=str,
)
def test_the_transform_shown_goes_through_the_rest_and_is_resumed(standard, words, tmp_path):
    words = [word for word in words if word != "optim.weight_decay=0.1"] + [standard, *CNN]
    assert_resumed_equals_whole(words, 6, tmp_path)


def test_the_transform_shown_in_packs(standard):
    def make(wanted):
        return [trainer(*cell, double=True) for cell in wanted]

    assert_pack_equals_alone(make, [[*CNN, standard, f"seed={seed}"] for seed in range(2)], steps=6, atol=1e-9)
