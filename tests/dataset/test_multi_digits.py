"""Two digits on one canvas: every canvas is taken apart again."""

import numpy as np
import pytest
import torch

from runner.dataset.digits import Digits
from runner.dataset.multi_digits import MultiDigits
from tests.tiny import compose, trainer


def prepared(dataset):
    dataset.prepare()
    return dataset


def boxes(image):
    """Where on the canvas an image without its empty border can be."""
    rows, columns = np.nonzero(image)
    return rows.min(), columns.min(), image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_canvas_holds_the_image_and_one_of_another_class(part):
    source, pairs = (getattr(prepared(dataset), part) for dataset in (Digits(val=0.0), MultiDigits(val=0.0)))
    assert (len(pairs), pairs.x.shape[1:], pairs.x.dtype) == (len(source), (1, 16, 16), torch.uint8)
    assert pairs.y.sum(1).eq(2).all() and pairs.y[torch.arange(len(source)), source.y].all()
    for i in range(0, len(pairs), 37):
        canvas, image = pairs.x[i, 0].numpy(), source.x[i, 0].numpy()
        other = int((pairs.y[i].numpy() - np.eye(10)[source.y[i]]).argmax())
        found = []
        for row in range(9):
            for column in range(9):
                first = np.zeros((16, 16), np.uint8)
                first[row : row + 8, column : column + 8] = image
                if (first <= canvas).all():
                    rest = np.where(canvas > first, canvas, 0)  # what the second digit certainly has
                    found.append((first, rest))
        assert found

        def explained(first, rest, canvas=canvas, other=other):
            for second in source.x[source.y == other][:, 0].numpy():
                for row in range(9):
                    for column in range(9):
                        part = canvas[row : row + 8, column : column + 8]
                        if (second <= part).all():
                            whole = np.zeros((16, 16), np.uint8)
                            whole[row : row + 8, column : column + 8] = second
                            if (np.maximum(whole, first) == canvas).all():
                                return True
            return False

        assert any(explained(first, rest) for first, rest in found)


def test_partners_and_places_are_drawn_uniformly():
    train = prepared(MultiDigits(val=0.0)).train
    source = prepared(Digits(val=0.0)).train
    both = train.y.T @ train.y
    assert (both - both.diag().diag() > 0).sum() == 90  # every pair of classes
    partner = train.y.clone()
    partner[torch.arange(len(source)), source.y] = 0
    expected = len(source) / 10
    assert (partner.sum(0) - expected).abs().max() < 5 * (expected * 0.9) ** 0.5
    ink = train.x.float().mean((0, 1))  # the middle of the canvas has most, and no side more than the other
    assert ink[6:10, 6:10].mean() > 2 * ink[0].mean()
    np.testing.assert_allclose(ink[:8].sum() / ink.sum(), 0.5, atol=0.03)
    np.testing.assert_allclose(ink[:, :8].sum() / ink.sum(), 0.5, atol=0.03)


def test_they_are_the_same_for_every_seed_and_split_by_it():
    a, b = (prepared(MultiDigits(seed=seed, val=0.1)) for seed in (1, 2))
    assert torch.equal(a.test.x, b.test.x) and torch.equal(a.train.base, b.train.base)
    assert not torch.equal(a.val.x, b.val.x)
    assert a.class_counts is None and a.record["shape"] == [1, 16, 16]
    assert prepared(MultiDigits(shift=0)).shape == (1, 8, 8)
    with pytest.raises(ValueError, match="classes only"):
        MultiDigits(imbalance=2.0)


def test_mnist_too(data_dir, tmp_path):
    dataset = prepared(MultiDigits(source="mnist", data_dir=data_dir, cache_dir=str(tmp_path)))
    assert (dataset.shape, len(dataset.train), len(dataset.test)) == ((1, 36, 36), 54_000, 10_000)
    assert dataset.test.y.sum(1).eq(2).all()


def test_the_option():
    node = compose("dataset=multi_digits")["dataset"]
    assert (node["source"], node["shift"]) == ("digits", 4)


def test_a_loss_for_classes_is_refused():
    from runner.core.mistake import ConfigError

    with pytest.raises(
        ConfigError, match="loss=ce is defined for classes and tasks, dataset=multi_digits has multilabel"
    ):
        trainer("dataset=multi_digits", "model=mlp")
