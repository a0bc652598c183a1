"""Losses that want several views of a sample: how they are made and encoded; NT-Xent and SimCLR's augmentations."""

import colorsys

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from runner.augment import Draw
from runner.augment.crop_flip import CropFlip
from runner.augment.cutout import Cutout
from runner.augment.simclr import SimCLR, hue
from runner.core.batch import Batch, Output
from runner.core.mistake import ConfigError
from runner.dataset.loader import Loader
from runner.engine.replicas import Replicas
from runner.loss.ntxent import NTXent
from runner.loss.projection import knn_accuracy
from runner.model import Classifier
from runner.record.identity import identity
from tests.dataset.test_loader import AUGMENTS, noise  # noqa: F401 (a fixture)
from tests.engine.test_replicas import assert_pack_equals_alone
from tests.test_compose import assert_resumed_equals_whole
from tests.tiny import compose, trainer

WORDS = ["loss=ntxent", "augment=[simclr]", "augment.simclr.flip=false"]
SMALL = [*WORDS, "dataset.subset=60", "dataset.val=0", "train.batch_size=12", "model.hidden=[16]", "loss.out=8"]


# ---- how they are made


def with_views(dataset, **settings):
    loader = Loader(dataset, "cpu", 8, 0, AUGMENTS[:2], **settings)
    loader.views = ("x2", "other")
    return loader


def test_the_sample_itself_is_as_without_views_and_every_view_is_another(noise):  # noqa: F811
    plain = list(Loader(noise, "cpu", 8, 0, AUGMENTS[:2]).epoch(1))
    for batch, alone in zip(with_views(noise).epoch(1), plain, strict=True):
        assert torch.equal(batch.x, alone.x)
        assert batch.more.keys() == {"x2", "other"} and batch.more["x2"].shape == batch.x.shape
        for one, other in ((batch.x, batch.more["x2"]), (batch.more["x2"], batch.more["other"])):
            assert (one != other).flatten(1).any(1).double().mean() > 0.8


def test_views_are_of_the_sample_wherever_it_stands(noise):  # noqa: F811
    whole = {int(i): v for b in with_views(noise).epoch(1) for i, v in zip(b.index, b.more["x2"], strict=True)}
    shares = [b for rank in range(2) for b in with_views(noise, rank=rank, world=2).epoch(1, 2)]
    assert shares and all(
        torch.equal(v, whole[int(i)]) for b in shares for i, v in zip(b.index, b.more["x2"], strict=True)
    )


def test_a_view_is_the_augmentations_with_its_own_numbers(noise):  # noqa: F811
    loader = Loader(noise, "cpu", 8, 0, [CropFlip(2), Cutout(3)])
    loader.views = ("x2",)
    batch = next(loader.epoch(3))
    draw = Draw(0, 3, 0, batch.index).of("x2")
    x = loader._normalise(CropFlip(2).pixels(noise.train.x[batch.index], draw))
    expected = Cutout(3).batch(Batch(x, batch.y, batch.index), draw).x
    assert torch.equal(batch.more["x2"], expected)


def test_an_augmentation_acts_on_the_views_that_it_is_for(noise):  # noqa: F811
    loader = Loader(noise, "cpu", 8, 0, [CropFlip(2, views=["x2"]), Cutout(3, views=["x"])])
    loader.views = ("x2", "other")
    batch = next(loader.epoch(3))
    draw, raw = Draw(0, 3, 0, batch.index), loader._normalise(noise.train.x[batch.index])
    assert torch.equal(batch.more["other"], raw)
    assert torch.equal(
        batch.more["x2"], loader._normalise(CropFlip(2).pixels(noise.train.x[batch.index], draw.of("x2")))
    )
    assert torch.equal(batch.x, Cutout(3).batch(Batch(raw, batch.y, batch.index), draw).x)


@pytest.mark.parametrize("on, words", [("[x3]", "views x and x2"), ("[]", "views x and x2")])
def test_views_that_the_loss_does_not_have_are_refused(on, words):
    with pytest.raises(ConfigError, match=words):
        trainer(*SMALL, f"augment.simclr.views={on}")
    with pytest.raises(ConfigError, match="loss=ce has the views x$"):
        trainer("augment=[cutout]", "augment.cutout.size=2", "augment.cutout.views=[x2]")


def test_a_run_is_called_as_before_where_augmentations_are_for_all_views():
    plain = compose(*SMALL)
    assert plain["augment"]["simclr"]["views"] is None
    before = plain | {"augment": {"simclr": {k: v for k, v in plain["augment"]["simclr"].items() if k != "views"}}}
    other = compose(*SMALL, "augment.simclr.views=[x2]")
    assert identity(plain) == identity(before) != identity(other)


def test_all_views_are_encoded_in_one_pass():
    run = trainer(*SMALL)
    batch = next(run.loader.epoch(0))
    sizes = []
    run.model.register_forward_hook(lambda _, given, out: sizes.append(len(given[0])))
    out = run.loss.ask(run.outputs, batch)
    assert sizes == [24]
    for key, x in (("", batch.x), ("x2.", batch.more["x2"])):
        alone = run.outputs(x)
        pairs = {"logits": alone.logits, "features": alone.features, "z": alone.more["z"]}
        mine = {"logits": out.logits, "features": out.features, **out.more}
        for name, value in pairs.items():
            torch.testing.assert_close(mine[key + name if key or name == "z" else name], value)
    assert len(out.logits) == 12


# ---- the loss


def by_hand(z: np.ndarray, t: float) -> np.ndarray:
    """Equation 1, anchor by anchor; rows 2k and 2k + 1 are the views of sample k."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    losses = []
    for a in range(len(z)):
        b = a + 1 if a % 2 == 0 else a - 1
        rest = sum(np.exp(z[a] @ z[c] / t) for c in range(len(z)) if c != a)
        losses.append(-np.log(np.exp(z[a] @ z[b] / t) / rest))
    return np.array(losses).reshape(-1, 2).mean(1)


@pytest.mark.parametrize("t, size, width", [(0.5, 5, 3), (0.07, 8, 16), (2.0, 2, 4)])
def test_ntxent_is_equation_1(t, size, width):
    z = torch.randn(size, 2, width, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    out = Output(z[:, 0], z[:, 0], {"z": z[:, 0], "x2.z": z[:, 1]})
    batch = Batch(z[:, 0], torch.zeros(size), torch.arange(size))
    found = NTXent(width, t)(out, batch)
    np.testing.assert_allclose(found.numpy(), by_hand(z.flatten(0, 1).numpy(), t), rtol=1e-12)


@pytest.mark.parametrize("k", [1, 4, 30])
def test_neighbours_are_those_of_scikit_learn(k):
    draw = np.random.default_rng(k)
    bank, queries, labels = draw.normal(size=(40, 5)), draw.normal(size=(1500, 5)), draw.integers(0, 3, 40)
    y = draw.integers(0, 3, 1500)
    weigh = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
    reference = KNeighborsClassifier(k, weights=weigh, metric="cosine").fit(bank, labels)
    given = (torch.from_numpy(values) for values in (bank, labels, queries, y))
    assert knn_accuracy(*given, k) == pytest.approx(reference.score(queries, y))


# ---- the augmentation


def test_hue_is_that_of_the_hexcone():
    x = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 0, 2] = 0.3, torch.tensor([0.5, 0.5, 0.1]), torch.tensor([0.2, 0.7, 0.7])
    by = torch.tensor([0.31, -0.2]).view(2, 1, 1, 1)
    found = hue(x, by)
    for k, row, column in np.ndindex(2, 5, 5):
        h, s, v = colorsys.rgb_to_hsv(*x[k, :, row, column].tolist())
        expected = colorsys.hsv_to_rgb((h + by[k].item()) % 1, s, v)
        np.testing.assert_allclose(found[k, :, row, column].numpy(), expected, atol=1e-6)


def numbers(count: int) -> Draw:
    return Draw(0, 0, 0, torch.arange(count))


def test_simclr_is_nothing_where_nothing_is_asked_for():
    x = torch.randint(0, 256, (6, 3, 9, 9), dtype=torch.uint8)
    still = SimCLR(scale=1, ratio=1, flip=False, strength=0, shape=(3, 9, 9), bounds=(0, 255))
    coloured = still.pixels(x, numbers(6))
    grey = (coloured - coloured.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-3
    torch.testing.assert_close(coloured[~grey], x[~grey].float(), atol=1e-3, rtol=0)
    one = torch.randint(0, 17, (6, 1, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(
        SimCLR(scale=1, ratio=1, flip=False, strength=0, bounds=(0, 16)).pixels(one, numbers(6)), one.float()
    )


def test_simclr_crops_shares_of_the_area_and_keeps_the_range():
    """Of an image whose pixels say where they were, a crop's spread is its size."""
    side, count = 32, 4000
    ramp = torch.linspace(0, 1, side)
    x = torch.stack([ramp.expand(side, side), ramp.unsqueeze(1).expand(side, side)]).expand(count, 2, side, side)
    augment = SimCLR(scale=0.2, ratio=2.0, strength=0, shape=(2, side, side), bounds=(0, 1))
    y = augment.pixels(x, numbers(count))
    assert y.min() >= 0 and y.max() <= 1
    wide, high = (y[:, 0, :, -1] - y[:, 0, :, 0])[:, 0], (y[:, 1, -1] - y[:, 1, 0])[:, 0]
    assert 0.45 < (wide < 0).double().mean() < 0.55 and (high > 0).all()
    area = wide.abs() * high * (side / (side - 1)) ** 2 * ((side - 1) / side) ** 2
    assert 0.17 < area.min() < 0.23 and area.max() > 0.9  # the side of a crop at the border is cut there
    assert (wide.abs() / high).min() > 0.5 * 0.9 and (wide.abs() / high).max() < 2 * 1.1
    assert 0.5 < area.mean() < 0.65


# ---- runs


def test_labels_decide_nothing_in_training():
    found = []
    for more in ([], ["dataset.noise=symmetric", "dataset.noise_rate=1.0"]):
        run = trainer(*SMALL, "optim.weight_decay=0", *more)
        before = run.model.head.weight.clone()
        for batch in run.loader.epoch(0):
            run.step(batch)
        assert isinstance(run.model, Classifier) and torch.equal(run.model.head.weight, before)
        found.append(run.weights.clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("more", [["optim=sam", "hook=[ema,clip]"], ["train.precision=fp16", "train.accumulate=2"]])
def test_stopped_and_gone_on(more, tmp_path):
    assert_resumed_equals_whole([*WORDS, "dataset.subset=32", *more], 6, tmp_path)


def test_packed_equals_alone():
    def make(cells):
        return [trainer(*SMALL, *words, double=True) for words in cells]

    cells = [["seed=0"], ["seed=1", "loss.temperature=0.3"], ["seed=2", "augment.simclr.strength=0.2", "optim=sam"]]
    assert_pack_equals_alone(make, [[*cell, "optim=sam"] for cell in cells], steps=8)
    run = Replicas(make(cells[:2]))
    assert run.step(next(run.loader.epoch(0))).shape == (2,)


def test_measured_is_the_accuracy_of_neighbours():
    run = trainer(*SMALL, "optim=sam", "hook=ema")
    for batch in run.loader.epoch(0):
        run.step(batch)
    found = run.evaluate(run.dataset.test)
    assert found == run.evaluate(run.dataset.test) and found.keys() == {"knn_accuracy"}
    assert 0.5 < found["knn_accuracy"] < 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["augment=[simclr,mixup]"], "augment=mixup mixes samples, and loss=ntxent wants each alone"),
        (["hook=saf"], "hook=saf goes by predictions, and loss=ntxent makes none"),
        (["quantization=lsq"], "quantization=lsq measures what is deployed by its predictions"),
        (["dataset=breast_cancer"], "augment.simclr: it is for images"),
        (["dataset=diabetes", "~augment.simclr"], "loss=ntxent is defined for classes"),
    ],
    ids=lambda of: of if isinstance(of, str) else None,
)
def test_refused_in_a_line(words, message):
    with pytest.raises(ConfigError, match=message):
        trainer("loss=ntxent", *(words if words[0].startswith("augment") else ["augment=[simclr]", *words]))


def test_fewer_negatives_are_said():
    assert trainer(*SMALL).notices == []
    (said,) = trainer(*SMALL, "train.accumulate=3").notices
    assert said == "loss=ntxent: a sample is told from the 3 others of its forward pass, not of its batch"
    (said,) = trainer("loss=ntxent").notices
    assert "both views of a sample are the sample itself" in said
