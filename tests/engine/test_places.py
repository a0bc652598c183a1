"""Targets with places: what counts, how micro-batches weigh, what is measured, and what is refused."""

import copy
import json
import math
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from runner.command.build import kinds
from runner.command.listing import conf_dir, options
from runner.core.batch import Batch
from runner.core.mistake import ConfigError
from runner.core.places import Sums
from runner.dataset import IGNORE, Dataset, Split
from runner.loss.ce import CrossEntropy
from runner.risk import Risk, units
from tests.conftest import ROOT
from tests.engine.test_replicas import assert_pack_equals_alone
from tests.test_compose import assert_resumed_equals_whole
from tests.tiny import command, trainer


class Tokens(Dataset):
    """Random blocks of six ids of five; with `holes` about a third of the targets does not count, with `sparse`
    none of most samples."""

    first = "nll"

    def __init__(self, *, holes: bool = False, sparse: bool = False, samples: int = 40, per="target", **settings):
        super().__init__(**settings)
        self.holes, self.sparse, self.samples, self.per = holes, sparse, samples, per

    def load(self):
        self.classes = self.vocabulary = 5
        self.shape = self.places = (6,)
        self.mean, self.std = torch.zeros(1), torch.ones(1)
        draw = torch.Generator().manual_seed(0)
        found = []
        for count in (self.samples, 10):
            ids = torch.randint(5, (count, 7), generator=draw)
            y = (3 * ids[:, :-1] + 1) % 5  # which a model can learn
            if self.holes:
                y = y.masked_fill(torch.rand(y.shape, generator=draw) < 0.35, IGNORE)
                y[3] = IGNORE  # a sample of which nothing counts
            if self.sparse:
                y[torch.rand(count, generator=draw) < 0.7] = IGNORE
            domain = torch.arange(count) % 2
            found.append(Split(ids[:, :-1].int(), y, domain))
        return tuple(found)


GPT = ["model=gpt", "model.width=8", "model.depth=1", "model.attention_heads=2"]
UNET = ["model=unet", "model.width=4", "model.levels=2"]
TEXT = ["dataset._target_=tests.engine.test_places.Tokens", "dataset.val=0", *GPT, "train.batch_size=10"]
HOLES = [*TEXT, "+dataset.holes=true"]
MASKS = ["dataset=digit_masks", "dataset.subset=24", "dataset.val=0", *UNET, "train.batch_size=6"]


def first(run) -> Batch:
    return next(iter(run.loader.epoch(0)))


# ---- what counts


def test_a_target_that_does_not_count_is_in_valid_and_never_seen():
    run = trainer(*HOLES)
    batch = first(run)
    raw = run.dataset.train.y[batch.index]
    assert torch.equal(batch.more["valid"], raw != IGNORE) and batch.y.min() == 0
    assert torch.equal(batch.y[batch.more["valid"]], raw[raw != IGNORE]) and batch.x.dtype == torch.int64
    assert "valid" not in first(trainer(*TEXT)).more
    whole = next(iter(run.loader.evaluate(run.dataset.test, 4)))
    assert whole.more["valid"].shape == (4, 6)


@pytest.mark.parametrize("per", ["target", "sample"])
@pytest.mark.parametrize("loss", ["ce", "poly", "focal", "mse", "squentropy"])
def test_the_gradient_is_that_of_the_mean_over_what_counts(per, loss):
    run = trainer(*HOLES, f"+dataset.per={per}", f"loss={loss}", "optim.lr=0", double=True)
    batch = first(run)
    loss = run.gradient(batch)
    losses = run.loss(run.loss.head(run.model(batch.x)), batch)
    valid = batch.more["valid"]
    if per == "target":
        expected = losses[valid].mean()
    else:
        expected = torch.stack([own[m].mean() if m.any() else own.sum() * 0 for own, m in zip(losses, valid)]).mean()
    grads = torch.autograd.grad(expected, run.weights.parameters, allow_unused=True)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(run.weights.grad, run.weights.flatten(grads))


@pytest.mark.parametrize("words", [[], ["sharpness=sam"], ["+dataset.per=sample"]], ids=str)
def test_micro_batches_weigh_by_what_counts_in_them(words):
    found = []
    for parts in (1, 2, 3, 10):
        run = trainer(*HOLES, f"train.accumulate={parts}", *words, double=True)
        loss = run.gradient(first(run))
        found.append((loss, run.weights.grad.clone()))
    for loss, grad in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(grad, found[0][1], rtol=1e-10, atol=1e-12)


def test_parts_of_m_weigh_by_what_counts_in_them():
    runs = [
        trainer(*HOLES, *words, double=True)
        for words in ([], ["sharpness=sam", "sharpness.rho=1e-12", "sharpness.m=3"])
    ]
    grads = []
    for run in runs:
        run.gradient(first(run))
        grads.append(run.weights.grad)
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-9)


def test_places_of_one_are_no_places():
    class One:
        places, per = (1,), "target"

    class No:
        places = ()

    losses, index = torch.randn(5, dtype=torch.float64), torch.arange(5)
    batch = Batch(torch.zeros(5, 2), torch.zeros(5), index, weight=torch.rand(5, dtype=torch.float64))
    for per in ("target", "sample"):
        One.per = per
        seen = 0
        for name, kind in kinds("risk").items():
            if kind.observe is not Risk.observe:
                continue  # with a memory, which is refused or by samples
            risk = kind()
            assert torch.equal(risk(*units(losses, batch, No)), risk(*units(losses.unsqueeze(1), batch, One))), name
            seen += 1
        assert seen >= 3


def test_a_sample_s_weight_is_that_of_its_targets():
    class Places:
        places, per = (3,), "target"

    losses = torch.arange(6.0).view(2, 3)
    batch = Batch(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([7, 9]), weight=torch.tensor([1.0, 2.0]))
    batch = batch.put(valid=torch.tensor([[True, True, False], [False, True, True]]))
    batch.mask = torch.tensor([True, False])
    flat, own = units(losses, batch, Places)
    assert flat.tolist() == [0, 1, 2, 3, 4, 5]
    assert own.weight.tolist() == [1, 1, 1, 2, 2, 2] and own.index.tolist() == [7, 7, 7, 9, 9, 9]
    assert own.mask.tolist() == [True, True, False, False, False, False]


def test_cross_entropy_of_places_is_that_of_each():
    logits, y = torch.randn(3, 4, 5, 6, dtype=torch.float64), torch.randint(6, (3, 4, 5))
    from runner.core.batch import Output

    for smoothing in (0.0, 0.1):
        loss = CrossEntropy(smoothing)
        for made in (logits, logits.movedim(-1, 1).contiguous().movedim(1, -1)):
            found = loss(Output(made, made), Batch(y, y, torch.arange(3)))
            expected = F.cross_entropy(made.reshape(-1, 6), y.flatten(), reduction="none", label_smoothing=smoothing)
            torch.testing.assert_close(found, expected.view(3, 4, 5))


# ---- measures


def test_sums_are_their_definitions():
    draw = np.random.default_rng(0)
    logits, y = torch.from_numpy(draw.normal(size=(7, 4, 3))), torch.from_numpy(draw.integers(0, 3, (7, 4)))
    valid = torch.from_numpy(draw.uniform(size=(7, 4)) < 0.6)
    sums = Sums(3, CrossEntropy(), overlap=True)
    for part in (slice(0, 3), slice(3, 7)):
        sums.add(logits[part], y[part], valid[part])
    found = sums.result("miou")
    z, t = logits[valid].numpy(), y[valid].numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    guess = z.argmax(1)
    assert list(found)[0] == "miou" and "perplexity" not in found
    assert found["nll"] == pytest.approx(-np.log(p[np.arange(len(t)), t]).mean())
    assert found["accuracy"] == pytest.approx((guess == t).mean())
    ious, dices = [], []
    for c in range(3):
        both, either = ((guess == c) & (t == c)).sum(), ((guess == c) | (t == c)).sum()
        ious.append(both / either), dices.append(2 * both / ((guess == c).sum() + (t == c).sum()))
    assert found["miou"] == pytest.approx(np.mean(ious)) and found["dice"] == pytest.approx(np.mean(dices))
    bins = np.minimum((p.max(1) * 15 - 1e-12).astype(int), 14)
    ece = sum(abs((guess == t)[bins == b].mean() - p.max(1)[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    assert found["ece"] == pytest.approx(ece)
    text = Sums(3, CrossEntropy(), overlap=False)
    text.add(logits, y, None)
    found = text.result("nll")
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"])) and list(found)[0] == "nll"


def test_what_is_measured_is_in_the_lines_and_chooses_the_best(tmp_path):
    done = command(*MASKS, "train.epochs=2", f"outputs_dir={tmp_path}", "device=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "miou" in done.stdout
    result = json.loads(next(tmp_path.rglob("result.json")).read_text())
    lines = [json.loads(line) for line in next(tmp_path.rglob("metrics.jsonl")).read_text().splitlines()]
    assert result["best_test"]["test_miou"] == max(line["test_miou"] for line in lines)


# ---- through everything else


@pytest.mark.parametrize("base", [HOLES, MASKS], ids=["text", "pixels"])
@pytest.mark.parametrize(
    "words",
    [
        ["optim=sam", "train.accumulate=2", "hook=[ema,clip]"],
        ["sharpness=asam", "sharpness.m=3", "train.precision=bf16", "optim=adamw", "groups=no_decay"],
        ["train.precision=fp16", "optim=muon", "loss=focal"],
        ["quantization=lsq", "quantization.ends=same"],
        ["transform=magnitude", "transform.magnitude.every=1", "hook=spectral_decoupling"],
        ["gradient=forward", "optim.lr=1e-3"],
    ],
    ids=str,
)
def test_it_goes_through_the_rest_and_is_resumed(base, words, tmp_path):
    own = [w for w in base if not w.startswith(("train.batch_size", "dataset.subset", "dataset.val"))]
    assert_resumed_equals_whole([*own, "dataset.subset=32", *words], 6, tmp_path)


@pytest.mark.parametrize("base", [HOLES, TEXT, MASKS], ids=["holes", "text", "pixels"])
def test_packs(base):
    def make(cells):
        return [trainer(*base, "train.accumulate=2", *cell, double=True) for cell in cells]

    assert_pack_equals_alone(make, [["seed=0"], ["seed=1", "optim.lr=0.05"]], steps=5, atol=1e-9)


def test_clients_side_by_side_are_clients_alone():
    from runner.federated.crew import Crew

    own = [*HOLES, "federated=fedavg", "federated.clients=4", "federated.rounds=1", "federated.minimum=2"]
    run = trainer(*own, "federated.partition=quantity", double=True)
    algorithm = run.hooks.named["federated"]
    assert algorithm.clients.apart() is None
    start, buffers = run.weights.clone(), [buffer.clone() for buffer in algorithm.clients.buffers]
    alone = torch.cat([algorithm.clients.alone(c, 0, start, buffers).delta for c in range(4)])
    (chosen,) = algorithm.clients.chunks([0, 1, 2, 3], 4)  # the largest first
    crew = Crew(algorithm.clients, 4).answers(chosen, 0, start, buffers)
    torch.testing.assert_close(crew.delta, alone[crew.clients], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("of", ["domains", "terms"])
def test_balances_of_places(of):
    more = ["hook=spectral_decoupling"] if of == "terms" else []
    run = trainer(*TEXT, "balance=upgrad", f"balance.of={of}", *more)
    run.step(first(run))
    assert torch.isfinite(run.weights.data).all()


@pytest.mark.parametrize("quantization", ["ptq", "adaround", "lsq"])
def test_what_is_deployed_measures_as_what_was_trained(quantization, tmp_path):
    words = [*HOLES, f"quantization={quantization}", "quantization.ends=same", "train.epochs=1"]
    words += ["quantization.steps=2"] if quantization == "adaround" else []
    done = command(*words, f"outputs_dir={tmp_path}", "device=cpu", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(next(tmp_path.rglob("result.json")).read_text())["quantization"]
    assert result["deployed"]["test_nll"] == pytest.approx(result["fake"]["test_nll"], abs=1e-4)


# ---- every option trains, or is one line


EVERY = [
    (group, option)
    for group in ("loss", "risk", "hook", "augment", "sampler", "sharpness", "quantization")
    for option in options(group, [conf_dir()])
]
NEEDED = {"hook": {"drw": ["hook.drw.epoch=0"]}, "sampler": {"classes": ["sampler.classes=2", "sampler.per_class=5"]}}


# Of one line: those for other targets, that go by one target a sample or by a range of inputs, that remember samples
REFUSED = {("loss", option) for option, kind in kinds("loss").items() if "classes" not in kind.tasks}
REFUSED |= {("loss", o) for o in ("adaface", "aggregate_response", "aldr_kl", "anyloss", "elr", "ensloss")}
REFUSED |= {("loss", o) for o in ("diffusion", "ntxent", "wgan", "wgan_gp")}
REFUSED |= {("hook", o) for o in ("drw", "fgsm", "mesa", "pgd", "saf", "smooth_adversarial")}
REFUSED |= {(group, o) for group, o in EVERY if group == "augment" and o != "none"}
REFUSED |= {("sampler", o) for o in ("balanced", "classes", "single", "weighted")}


@pytest.mark.parametrize(("group", "option"), EVERY, ids=lambda value: value)
def test_every_option_trains_on_places_or_is_one_line(group, option):
    chosen = f"{group}=[{option}]" if group in ("hook", "augment") else f"{group}={option}"
    more = NEEDED.get(group, {}).get(option, [])
    if group == "quantization" and option not in ("none", "self_compression"):
        more = ["quantization.ends=same"]
    if option == "gaqat":
        more = [*more, "optim=sam"]
    words = [*HOLES, "+dataset.per=sample" if group == "risk" else "train.steps=2", chosen, *more]
    if (group, option) in REFUSED:
        with pytest.raises(ConfigError, match=f"^[^\n]*({option}|{group})[^\n]*$"):
            trainer(*words)
        return
    run = trainer(*words)
    before = run.weights.clone()
    for batch in [*run.loader.epoch(0)][:2]:
        run.step(batch)
    assert torch.isfinite(run.weights.data).all() and not torch.equal(before, run.weights.data)
    run.evaluate(run.dataset.test)


@pytest.mark.parametrize(
    "words, why",
    [
        ([*HOLES, "loss=elr"], "loss=elr remembers something of every sample, and .* has 6 targets a sample"),
        ([*TEXT, "risk=prospect"], "risk=prospect remembers every sample's loss.*set dataset.per=sample"),
        ([*HOLES, "risk=top_k"], "risk=top_k cannot leave targets out.*set dataset.per=sample"),
        ([*HOLES, "balance=upgrad", "balance.of=domains"], "balance=upgrad weighs by samples"),
        ([*MASKS, "augment=crop_flip"], "augment=crop_flip changes inputs and not their targets"),
        ([*TEXT, "sampler=balanced"], "by=class goes by one class id a sample"),
        ([*TEXT, "hook=fgsm"], "fgsm"),
        (
            ["dataset=digit_masks", "dataset.noise=symmetric", "dataset.noise_rate=0.1", *UNET],
            "dataset.noise goes by one",
        ),
        (["dataset=digit_masks", "dataset.imbalance=10", *UNET], "dataset.imbalance goes by one class id"),
        (["dataset=digits", *GPT], "gpt needs ids"),
        ([*[w for w in TEXT if "model" not in w], "model=mlp"], "has ids, and model=mlp takes numbers; .* model=gpt"),
        (["dataset=digit_masks", "model=mlp"], "has 16 x 16 targets a sample, and the logits of model=mlp are"),
        (
            [*HOLES, "federated=fedavg", "federated.partition=dirichlet", "federated.clients=2", "federated.minimum=2"],
            "partition=dirichlet",
        ),
    ],
    ids=str,
)
def test_what_goes_by_one_target_a_sample_is_one_line(words, why):
    with pytest.raises(ConfigError, match=why):
        trainer(*words)


def test_what_needs_probabilities_is_none_where_the_loss_has_none():
    class Scores(CrossEntropy):
        probabilities = False

    sums = Sums(3, Scores(), overlap=False)
    sums.add(torch.randn(2, 4, 3), torch.zeros(2, 4, dtype=torch.int64), None)
    found = sums.result("nll")
    assert {key for key, value in found.items() if value is None} == {"nll", "ece", "perplexity"}
    assert found["accuracy"] is not None


# ---- the data set that DESIGN.md shows


def test_the_data_set_shown_learns(tmp_path, monkeypatch):
    text = (ROOT / "DESIGN.md").read_text().partition("import torch  # parity.py")[2].partition("```")[0]
    assert 0 < len([line for line in text.splitlines() if line.strip()]) <= 20
    (tmp_path / "parity.py").write_text(f"import torch{text}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "parity", raising=False)
    words = ["dataset._target_=parity.Parity", *GPT, "model.width=32", "optim=adamw", "optim.lr=0.01", "dataset.val=0"]
    run = trainer(*words)
    start = run.evaluate(run.dataset.test)
    for epoch in range(6):
        for batch in run.loader.epoch(epoch):
            run.step(batch)
    found = run.evaluate(run.dataset.test)
    assert list(found)[0] == "nll" and found["nll"] < start["nll"] - 0.1
    again = trainer(*words)
    again.load_state_dict(copy.deepcopy(run.state_dict()))
    assert again.evaluate(run.dataset.test) == found
