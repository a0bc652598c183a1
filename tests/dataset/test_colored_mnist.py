"""Colored MNIST against its definition, on stand-ins for MNIST and, where it is there, on MNIST itself."""

import io
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from runner.dataset import Split, colored_mnist
from runner.dataset.colored_mnist import ColoredMnist
from runner.dataset.loader import Loader
from tests.tiny import compose


def stand_in(samples):
    """Images without a zero pixel, so that a colour can be seen, and digits, in any order."""
    draw = np.random.default_rng(0)
    images = draw.integers(1, 256, (samples, 1, 28, 28), dtype=np.uint8)
    return torch.from_numpy(images), torch.from_numpy(draw.integers(0, 10, samples))


WHOLE = stand_in(60_000)


@pytest.fixture
def make(monkeypatch):
    """A prepared data set over stand-in images, MNIST's 60,000 or others."""

    def prepared(*, images=WHOLE, **settings):
        class Reader:
            def __init__(self, **_): ...
            def load(self):
                return Split(*images), None

        monkeypatch.setattr(colored_mnist, "Hub", Reader)
        dataset = ColoredMnist(**settings)
        dataset.prepare()
        return dataset

    return prepared


def colour(split):
    """The channel that is not zero."""
    lit = split.x.flatten(2).any(-1)
    assert torch.equal(lit.sum(1), torch.ones(len(split), dtype=torch.long))
    return lit.long().argmax(1)


def within(count, n, p):
    """A binomial count is within five standard deviations: wrong once in two million, and the seeds are fixed."""
    return abs(int(count) - n * p) <= 5 * math.sqrt(n * p * (1 - p))


def test_which_image_is_where(make):
    images, digits = WHOLE
    dataset = make()
    assert (len(dataset.train), dataset.val, len(dataset.test)) == (50_000, None, 10_000)
    assert (dataset.shape, dataset.classes, dataset.train.x.dtype) == ((2, 14, 14), 2, torch.uint8)
    for split, offset in ((dataset.train, 0), (dataset.test, 50_000)):
        channel = colour(split)
        for i in (0, 1, 777, len(split) - 1):
            for row, column in ((0, 0), (0, 13), (5, 9), (13, 13)):
                expected = images[offset + i, 0, 2 * row, 2 * column]
                assert split.x[i, channel[i], row, column] == expected
                assert split.x[i, 1 - channel[i], row, column] == 0
        # three labels in four say whether the digit is below five
        right = split.y == (digits[offset : offset + len(split)] < 5)
        assert within(right.sum(), len(split), 0.75)


def test_every_combination_is_as_frequent_as_the_definition_says(make):
    """P(label flipped, colour flipped) in each environment, by shape: they are independent of each other and of it."""
    dataset, digits = make(seed=3), WHOLE[1]
    y, channel = torch.cat([dataset.train.y, dataset.test.y]), torch.cat([colour(dataset.train), colour(dataset.test)])
    domain = torch.cat([dataset.train.domain, dataset.test.domain])
    assert torch.bincount(domain).tolist() == [25_000, 25_000, 10_000]
    assert torch.equal(domain[50_000:], torch.full((10_000,), 2))
    low = (digits < 5).long()
    for environment, e in enumerate((0.2, 0.1, 0.9)):
        for shape, label_flipped, colour_flipped in product((0, 1), repeat=3):
            among = (domain == environment) & (low == shape)
            label = shape ^ label_flipped
            count = (among & (y == label) & (channel == label ^ colour_flipped)).sum()
            p = (0.25 if label_flipped else 0.75) * (e if colour_flipped else 1 - e)
            assert within(count, int(among.sum()), p), (environment, shape, label_flipped, colour_flipped)
    # what makes the set a trap: the rule by colour is right more often than 75 % in training
    assert within((colour(dataset.train) == dataset.train.y).sum(), 50_000, 0.85)
    assert within((colour(dataset.test) == dataset.test.y).sum(), 10_000, 0.10)


def test_environments_are_dealt_at_random(make):
    domain = make().train.domain
    assert within(domain[:25_000].sum(), 25_000, 0.5)
    assert within((domain[:-1] != domain[1:]).sum(), 49_999, 0.5)  # neither in blocks nor in turn
    assert not torch.equal(domain, make(seed=1).train.domain)


def test_the_record_has_the_realised_rates(make):
    dataset, low = make(seed=5), WHOLE[1] < 5
    assert [entry["samples"] for entry in dataset.record["environments"]] == [25_000, 25_000, 10_000]
    y, channel = torch.cat([dataset.train.y, dataset.test.y]), torch.cat([colour(dataset.train), colour(dataset.test)])
    for e, entry in enumerate(dataset.record["environments"]):
        here = torch.cat([dataset.train.domain, dataset.test.domain]) == e
        assert entry["flipped_labels"] == pytest.approx((y != low)[here].double().mean().item(), abs=1e-12)
        assert entry["flipped_colours"] == pytest.approx((y != channel)[here].double().mean().item(), abs=1e-12)


def test_without_chance_every_sample_is_known(make):
    dataset, low = make(label_noise=0.0, colour_noise=[0.0, 1.0, 0.0]), (WHOLE[1] < 5).long()
    assert torch.equal(dataset.train.y, low[:50_000])
    assert torch.equal(dataset.test.y, low[50_000:])
    assert torch.equal(colour(dataset.test), dataset.test.y)
    assert torch.equal(colour(dataset.train), dataset.train.y ^ dataset.train.domain)
    flipped = make(label_noise=1.0, colour_noise=[0.0, 0.0, 0.0])
    assert torch.equal(flipped.train.y, 1 - low[:50_000])
    assert torch.equal(colour(flipped.train), flipped.train.y)


def test_draws_follow_the_damage_seed_and_not_each_other(make):
    a, b = make(seed=1, damage_seed=7), make(seed=2, damage_seed=7)
    assert torch.equal(a.train.x, b.train.x)
    assert torch.equal(a.train.y, b.train.y)
    assert torch.equal(a.train.domain, b.train.domain)
    other = make(seed=1, damage_seed=8)
    assert 0.3 < (a.train.y != other.train.y).double().mean() < 0.45  # 2 * 0.25 * 0.75
    clean = make(damage_seed=7, label_noise=0.0)
    assert torch.equal(clean.train.domain, a.train.domain)
    assert torch.equal(colour(clean.train) ^ clean.train.y, colour(a.train) ^ a.train.y)
    recoloured = make(damage_seed=7, colour_noise=[0.5, 0.5, 0.5])
    assert torch.equal(recoloured.train.y, a.train.y)


def test_other_environments(make):
    dataset = make(images=stand_in(10_302), colour_noise=[0.0, 0.0, 1.0, 0.0])
    assert torch.bincount(dataset.train.domain).tolist() == [101, 101, 100]
    assert torch.equal(dataset.test.domain.unique(), torch.tensor([3]))
    assert torch.equal(colour(dataset.train) != dataset.train.y, dataset.train.domain == 2)


def test_the_settings_of_every_data_set_apply(make):
    plain = make()
    held = make(val=0.1)
    assert (len(held.train), len(held.val), len(held.test)) == (45_000, 5_000, 10_000)
    assert held.val.domain.unique().tolist() == [0, 1]
    assert torch.equal(held.test.y, plain.test.y)
    few = make(subset=1000, noise="symmetric_other", noise_rate=1.0)
    quiet = make(subset=1000)
    assert torch.equal(few.train.x, quiet.train.x)
    assert torch.equal(few.train.domain, quiet.train.domain)
    assert torch.equal(few.train.y, 1 - quiet.train.y)
    assert torch.equal(few.test.y, plain.test.y)
    assert make(imbalance=10.0).class_counts[1] * 10 == pytest.approx(make(imbalance=10.0).class_counts[0], rel=0.01)


def test_inputs_are_scaled_to_one_and_nothing_else(make):
    dataset = make(images=stand_in(10_050))
    batch = next(Loader(dataset, "cpu", 50, seed=0).epoch(0))
    expected = dataset.train.x[batch.index].double() / 255
    np.testing.assert_allclose(batch.x.double().numpy(), expected.numpy(), rtol=1e-6)
    assert torch.equal(batch.domain, dataset.train.domain[batch.index])


@pytest.mark.parametrize("values", [[], [0.1]])
def test_too_few_environments(values):
    with pytest.raises(ValueError, match=r"colour_noise=\[.*\] must have a probability for each training environment"):
        ColoredMnist(colour_noise=values)


@pytest.mark.parametrize(("samples", "side"), [(10_000, 28), (60, 28), (10_050, 32)])
def test_images_that_are_not_mnist(make, samples, side):
    images = torch.zeros(samples, 1, side, side, dtype=torch.uint8), torch.zeros(samples, dtype=torch.long)
    with pytest.raises(ValueError, match=f"'mnist' must have images of 1x28x28 .* got {samples:,} of 1x{side}x{side}"):
        make(images=images)


def test_the_option_has_the_papers_numbers():
    node = compose("dataset=colored_mnist")["dataset"]
    assert (node["label_noise"], node["colour_noise"], node["val"]) == (0.25, [0.2, 0.1, 0.9], 0.0)


def test_mnist_itself(data_dir, tmp_path):
    """The images are those of the training file in its order, decoded here by other means; the cache is mnist's."""
    import pyarrow.parquet
    from PIL import Image

    dataset = ColoredMnist(data_dir=data_dir, cache_dir=str(tmp_path))
    dataset.prepare()
    (file,) = Path(data_dir, "mnist").glob("train-*.parquet")
    rows = pyarrow.parquet.read_table(file)
    for split, offset in ((dataset.train, 0), (dataset.test, 50_000)):
        assert len(split) == min(50_000, 60_000 - offset)
        for i in (0, 4321, len(split) - 1):
            image = np.asarray(Image.open(io.BytesIO(rows["image"][offset + i]["bytes"].as_py())))
            assert np.array_equal(split.x[i].sum(0).numpy(), image[::2, ::2])
        digits = torch.tensor(rows["label"].to_pylist()[offset : offset + len(split)])
        assert within((split.y == (digits < 5)).sum(), len(split), 0.75)
        assert (colour(split) == split.y).double().mean() == pytest.approx({0: 0.85, 50_000: 0.1}[offset], abs=0.015)
    assert [path.name.split("-")[0] for path in tmp_path.iterdir() if path.is_dir()] == ["mnist"]
