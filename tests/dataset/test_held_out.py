"""The validation split: a seed of its own, and the same part of every class."""

import pytest
import torch

from runner.engine import heldout
from runner.record.identity import identity
from tests.dataset.made import MANY, positions, prepared
from tests.tiny import compose


def test_a_seed_of_its_own_is_shared_by_all_seeds():
    splits = [positions(prepared(MANY, val=0.2, seed=seed, split_seed=7).val) for seed in range(3)]
    assert torch.equal(splits[0], splits[1]) and torch.equal(splits[0], splits[2])
    own = [positions(prepared(MANY, val=0.2, seed=seed).val) for seed in (7, 8)]
    assert torch.equal(splits[0], own[0]) and not torch.equal(own[0], own[1])  # by default it is the run's


def test_every_class_gives_the_same_part():
    y = torch.tensor([0] * 1000 + [1] * 101 + [2] * 11 + [3] * 3).repeat(1)[torch.randperm(1115)]
    data = prepared(y, val=0.2, stratify=True)
    assert torch.bincount(data.val.y).tolist() == [200, 20, 2, 1]
    assert torch.bincount(data.train.y).tolist() == [800, 81, 9, 2]
    both = torch.cat([positions(data.train), positions(data.val)])
    assert torch.equal(both.sort().values, torch.arange(1115))
    smaller = prepared(y, val=0.1, stratify=True)
    assert set(positions(smaller.val).tolist()) < set(positions(data.val).tolist())


def test_it_is_for_classes():
    from runner.dataset.tables import Table

    with pytest.raises(ValueError, match="dataset.stratify is defined for classes only, and this data set is regress"):
        Table("diabetes", stratify=True)


def test_a_run_is_called_as_before_there_were_these_keys():
    plain = compose()
    node = {key: value for key, value in plain["dataset"].items() if key not in ("split_seed", "stratify")}
    assert identity(plain | {"dataset": node}) == identity(plain)
    assert len({identity(compose(*words)) for words in ([], ["dataset.split_seed=0"], ["dataset.stratify=true"])}) == 3


@pytest.mark.parametrize(
    "there, here, held",
    [
        (["seed=1"], ["seed=2"], False),
        (["seed=1", "dataset.split_seed=5"], ["seed=2", "dataset.split_seed=5"], True),
        (["seed=1", "dataset.split_seed=2"], ["seed=2"], True),
        (["seed=1", "dataset.split_seed=5"], ["seed=1"], False),
        (["dataset.stratify=true"], [], False),
        (["dataset.stratify=true"], ["dataset.stratify=true", "dataset.val=0.05"], True),
    ],
)
def test_a_checkpoint_says_whether_validation_was_held_out(tmp_path, there, here, held):
    facts, lines = heldout.compare(compose(*there), tmp_path, compose(*here), "0" * 64)
    assert facts["val_held_out"] is held
    assert any("validation is not held out" in line for line in lines) is not held
