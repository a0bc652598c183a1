"""What a data set of the user's own may return wrong: each is one line that names the data set and the split."""

import numpy as np
import pytest
import torch

from runner.core.mistake import ConfigError
from runner.dataset import Dataset, Split
from runner.dataset.loader import Loader
from tests.tiny import SMALL, compose, trainer

NAN, INF = float("nan"), float("inf")


class Mine(Dataset):
    """A sound data set of 12 and 6 samples of three columns; `change` makes something of its splits and itself."""

    classes, shape = 3, (3,)
    change = staticmethod(lambda self, train, test: (train, test))

    def load(self):
        x = torch.arange(54).float().reshape(18, 3)
        y = torch.arange(18) % 3
        if self.task == "regression":
            self.classes, y = 1, y.float()
        elif self.task == "multilabel":
            y = torch.nn.functional.one_hot(y, 3).float()
        self.mean, self.std = torch.zeros(3), torch.ones(3)
        return self.change(self, Split(x[:12], y[:12]), Split(x[12:], y[12:]))


def prepared(change=None, task="classes", **settings):
    dataset = type("Mine", (Mine,), {"task": task, "change": staticmethod(change or Mine.change)})(val=0.0, **settings)
    dataset.prepare()
    return dataset


def put(part, key, value):
    """One of the splits with another x, y or so; a function is given the old value."""

    def change(self, train, test):
        split = {"train": train, "test": test}[part]
        setattr(split, key, value(getattr(split, key)) if callable(value) else value)
        return train, test

    return change


def set_own(**values):
    def change(self, train, test):
        vars(self).update(values)
        return train, test

    return change


def at(row, value, dtype=None):
    def put_there(old):
        new = old.clone() if dtype is None else old.to(dtype)
        new[row] = value
        return new

    return put_there


TRAINING, TEST = "the training split of data set 'tests.dataset.test_check.Mine'", "the test split of data set"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda *_: None, "must return two splits.*it returned None"),
        (lambda self, train, test: train, "must return two splits.*it returned Split"),
        (lambda self, train, test: (train,), "it returned 1 values, Split"),
        (lambda self, train, test: (train, test, test), "it returned 3 values"),
        (lambda self, train, test: (train.x.numpy(), train.y.numpy()), "it returned 2 values, ndarray, ndarray"),
        (lambda self, train, test: (train.x, train.y), "it returned 2 values, Tensor, Tensor"),
        (lambda self, train, test: {}["gone"], r"failed: KeyError: 'gone' \(.*test_check.py, line \d+, in "),
        (lambda self, train, test: exit(3), r"failed: SystemExit: 3"),
        (set_own(classes=None), "load.. must set self.classes"),
        (set_own(mean=None), "load.. must set self.mean"),
        (set_own(classes=2.0), "classes=2.0 must be how many"),
        (set_own(bounds=(0, 20)), r"inputs go from 0 to 35, beyond the declared bounds=\(0, 20\)"),
        (set_own(bounds=(0, 40)), f"{TEST}.*inputs go from 36 to 53, beyond the declared"),
        (set_own(bounds=(1, 1)), r"bounds=\(1, 1\) must be \(low, high\)"),
        (set_own(bounds=53), "bounds=53 must be"),
        (set_own(bounds=(0, INF)), "bounds=.0, inf. must be"),
        (set_own(names=["a", "b"]), "2 names for 3 classes"),
        (put("train", "base", lambda x: x.numpy()), f"{TRAINING}: x is numpy.ndarray; it must be one tensor"),
        (put("test", "base", list), f"{TEST}.*: x is builtins.list; .* all samples of one shape"),
        (put("train", "base", lambda x: x[:, :2]), r"inputs are \(2,\), and the data set's shape is \(3,\)"),
        (put("train", "base", lambda x: x.to(torch.complex64)), "x is torch.complex64; inputs must be real"),
        (put("train", "base", at((4, 1), NAN)), f"{TRAINING}: 1 of 12 inputs hold NaN or infinity, the first is row 4"),
        (put("test", "base", at((5, 2), -INF)), f"{TEST}.*: 1 of 6 inputs hold NaN or infinity, the first is row 5"),
        (put("train", "y", lambda y: y[:7]), f"{TRAINING} has 12 inputs and 7 targets"),
        (put("test", "y", lambda y: torch.cat([y, y])), f"{TEST}.* has 6 inputs and 12 targets"),
        (lambda self, train, test: (train, test.select(torch.arange(0))), f"{TEST}.* is empty"),
        (lambda self, train, test: (train.select(torch.arange(0)), test), f"{TRAINING} is empty"),
        (put("train", "rows", torch.arange(1, 13)), "rows 1 to 12 of 12 inputs"),
        (put("train", "domain", torch.zeros(5).long()), r"domain must be \(12,\) integers, it is \(5,\)"),
        (put("train", "y", lambda y: y.numpy()), "y is ndarray; it must be a tensor"),
        (put("train", "y", lambda y: y.float()), "labels are torch.float32, and class ids are integers"),
        (put("train", "y", lambda y: y[:, None]), r"labels are \(12, 1\); they must be \(N,\)"),
        (put("train", "y", at(3, -1)), r"labels must be in 0..2, and 1 of 12 are not: row 3 is -1"),
        (put("test", "y", at(2, 3)), f"{TEST}.*: labels must be in 0..2, and 1 of 6 are not: row 2 is 3"),
        (put("train", "y", at(2, 10**9)), "row 2 is 1000000000"),
        (set_own(classes=10**9 + 1), "1,000,000,001 classes for 12 samples"),
        (set_own(mean=torch.zeros(2)), r"mean is \(2,\); inputs of \(3,\) have \(3,\)"),
        (set_own(std=torch.ones(3, 3)), r"std is \(3, 3\)"),
        (set_own(std=[1.0, 1.0, 1.0]), "std is 3 values.* must be a tensor"),
        (set_own(std=torch.tensor([1.0, 0.0, 1.0])), "std of channel or column 1 is 0, and the inputs are not"),
        (set_own(std=torch.zeros(1)), "is 0, and the inputs are not constant"),
        (set_own(mean=torch.tensor([0.0, NAN, 0.0])), "mean is .*nan.* must be finite"),
        (set_own(std=torch.tensor([1.0, -1.0, 1.0])), "must be finite and not negative"),
    ],
)
def test_mistakes_of_a_data_set_are_one_line(change, words):
    with pytest.raises(ValueError, match=words) as error:
        prepared(change)
    assert "\n" not in str(error.value)
    assert "tests.dataset.test_check.Mine" in str(error.value)


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("regression", put("train", "y", at(2, NAN)), f"{TRAINING}: 1 of 12 targets hold NaN or infinity.* row 2"),
        ("regression", put("test", "y", at(0, INF)), f"{TEST}.*: 1 of 6 targets hold NaN or infinity.* row 0"),
        ("regression", put("train", "y", lambda y: y.expand(2, 12).T), r"targets are \(12, 2\), .* has \(N, 1\)"),
        ("regression", set_own(classes=2), r"targets are \(12,\), and regression of 2 has \(N, 2\)"),
        ("multilabel", put("train", "y", lambda y: y[:, 0]), r"targets are \(12,\), and multilabel of 3 has \(N, 3\)"),
        ("multilabel", put("train", "y", at((1, 1), 2.0)), "must be in 0..1, they go from 0.0 to 2.0"),
        ("multilabel", put("test", "y", at((1, 1), NAN)), f"{TEST}.*: 1 of 6 targets hold NaN"),
    ],
)
def test_mistakes_in_other_targets_are_one_line(task, change, words):
    with pytest.raises(ValueError, match=words) as error:
        prepared(change, task)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integer_labels_of_any_width_are_class_ids(dtype):
    dataset = prepared(put("train", "y", lambda y: y.to(dtype)))
    assert dataset.train.y.dtype == torch.int64
    assert torch.equal(dataset.train.y, torch.arange(12) % 3)


def test_integer_targets_of_a_regression_are_floats():
    dataset = prepared(put("train", "y", lambda y: y.long()), "regression")
    assert dataset.train.y.dtype == torch.float32
    double = prepared(put("train", "y", lambda y: y.double()), "regression")
    assert double.train.y.dtype == torch.float64


def test_rows_that_a_split_leaves_out_may_hold_anything():
    def change(self, train, test):
        train.base[5] = NAN
        return train.select(torch.tensor([0, 1, 2, 6])), test

    assert len(prepared(change).train) == 4


def test_classes_without_a_training_sample_are_a_line():
    dataset = prepared(put("train", "y", lambda y: y.clamp(max=1)))
    assert dataset.notices == ["1 of 3 classes have no training sample: 2; 2 of the 6 test samples are of them"]
    assert prepared(set_own(classes=8)).notices == ["5 of 8 classes have no training sample: 3, 4, 5, 6, 7"]
    assert prepared().notices == []


def test_one_class_alone_is_a_line():
    def change(self, train, test):
        self.classes = 1
        return train.labelled(train.y * 0), test.labelled(test.y * 0)

    assert prepared(change).notices == ["there is one class, so every prediction is right"]


def test_a_column_that_is_constant_becomes_zero_and_is_not_blown_up():
    def change(self, train, test):
        x = train.x.clone()
        x[:, 1] = 7.0
        self.mean, self.std = x.mean(0), x.std(0)
        return Split(x, train.y), test

    dataset = prepared(change)
    assert dataset.notices == ["input 1 is constant in training and not in the test split"]
    loader = Loader(dataset, "cpu", 4, 0)
    assert all((batch.x[:, 1] == 0).all() for batch in loader.epoch(0))
    seen = torch.cat([batch.x for batch in loader.evaluate(dataset.test, 4)])
    torch.testing.assert_close(seen[:, 1], dataset.test.x[:, 1] - 7)


def test_a_small_scale_is_a_scale():
    """Inputs in metres that are nanometres: (x - mean) / std as for any other."""

    def change(self, train, test):
        self.mean, self.std = train.x.mean(0) * 1e-9, train.x.std(0) * 1e-9
        return Split(train.x * 1e-9, train.y), Split(test.x * 1e-9, test.y)

    dataset = prepared(change)
    batch = next(Loader(dataset, "cpu", 12, 0).epoch(0))
    torch.testing.assert_close(batch.x.std(0), torch.ones(3))


def test_what_the_class_itself_lacks_is_a_line():
    class Plain(Dataset):
        pass

    class Deaf(Mine):
        def __init__(self, **settings):
            pass

    for kind, words in ((Plain, "Plain': load.. must return two splits"), (Deaf, "must call super.*__init__")):
        with pytest.raises(ValueError, match=words) as error:
            kind().prepare()
        assert "\n" not in str(error.value)


# ---- fingerprints


def test_every_data_set_has_a_fingerprint():
    own = prepared().record["fingerprint"]
    assert own == prepared().record["fingerprint"] and len(own) == 64
    for part in ("train", "test"):
        for key in ("base", "y"):
            assert prepared(put(part, key, at(3, 1 if key == "y" and part == "train" else 2))).fingerprint != own
    assert prepared(put("train", "domain", torch.arange(12))).fingerprint != own
    for option in ("digits", "wine", "diabetes", "breast_cancer", "multi_digits"):
        assert len(trainer(f"dataset={option}", loss_for(option)).dataset.record["fingerprint"]) == 64


def loss_for(option: str) -> str:
    return {"diabetes": "loss=cs_ib", "multi_digits": "loss=asl_multilabel"}.get(option, "loss=ce")


class Lazy:
    """Images decoded when asked for: image i is of value i + `shift`."""

    def __init__(self, index, shift):
        self.index, self.shift = index, shift

    def __len__(self):
        return len(self.index)

    def select(self, index):
        return Lazy(self.index[index], self.shift)

    def get(self, i, seed):
        return torch.full((1, 2, 2), int(self.index[i]) + self.shift, dtype=torch.uint8)


def test_images_that_are_decoded_on_demand_have_one_too():
    def of(shift):
        def change(self, train, test):
            self.shape, self.mean, self.std = (1, 2, 2), torch.zeros(1), torch.ones(1)
            return Split(Lazy(torch.arange(12), shift), train.y), Split(Lazy(torch.arange(6), shift), test.y)

        return prepared(change).fingerprint

    assert of(0) == of(0) != of(1)


# ---- as a run meets it


class Broken(Mine):
    @staticmethod
    def change(self, train, test):
        return np.zeros(3), None


def test_a_run_says_it_in_one_line():
    config = [*SMALL, "dataset=digits", "dataset._target_=tests.dataset.test_check.Broken", "dataset.subset=null"]
    with pytest.raises(
        ConfigError, match="dataset: data set 'tests.dataset.test_check.Broken': load.. must return two"
    ):
        trainer(*config)
    assert compose(*config)["dataset"]["_target_"].endswith("Broken")


class Unprepared(Dataset):
    def prepare(self):
        pass


def test_a_prepare_that_leaves_out_the_base_class_is_one_line():
    config = [*SMALL, "dataset=digits", "dataset._target_=tests.dataset.test_check.Unprepared", "dataset.subset=null"]
    with pytest.raises(ConfigError, match=r"dataset: Unprepared \(.*\) has not all that super\(\).prepare\(\) sets"):
        trainer(*config)
