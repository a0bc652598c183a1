"""Known accuracies on real data: `make check`. Minutes to a quarter of an hour on two cores."""

import json

import pytest
import yaml

from tests.tiny import command

pytestmark = pytest.mark.slow


def accuracy(cwd, *words) -> float:
    result = command(*words, cwd=cwd, env={"OMP_NUM_THREADS": "2"}, timeout=3600)
    assert result.returncode == 0, result.stderr
    (path,) = cwd.glob("outputs/runs/*/result.json")
    return json.loads(path.read_text())["last"]["test_accuracy"]


def test_lenet_on_mnist_reaches_985_in_three_epochs(data_dir, tmp_path):
    words = ["dataset=mnist", "model=lenet", "train.epochs=3", f"data_dir={data_dir}"]
    assert accuracy(tmp_path, *words) >= 0.985


def test_resnet20_on_cifar10_learns_past_60(data_dir, tmp_path):
    words = ["dataset=cifar10", "model=resnet20", "augment=crop_flip", "train.epochs=4", "train.batch_size=128"]
    words += ["optim.lr=0.1", "optim.nesterov=true", "schedule.warmup=0.5", f"data_dir={data_dir}"]
    assert accuracy(tmp_path, *words) > 0.60


def test_federated_averaging_on_mnist_in_a_few_rounds(data_dir, tmp_path):
    """The experiment's quick form on a third of the data, for one seed: 71 % (IID), 61 (Dirichlet), 10 (one label)."""
    words = ["+experiment=li2022/mnist", "seed=0", "federated.rounds=3", "federated.local_epochs=2", "name=quick"]
    words += ["dataset.subset=20000"]
    result = command(*words, f"data_dir={data_dir}", cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}, timeout=7200)
    assert result.returncode == 0, result.stderr
    found = {}
    for path in tmp_path.glob("outputs/quick/*/result.json"):
        made = json.loads(path.read_text())
        config = yaml.safe_load((path.parent / ".hydra" / "config.yaml").read_text())["federated"]
        found[made["choices"]["federated"], config["partition"], config["labels"]] = made["best_test"]["test_accuracy"]
    assert len(found) == 16
    for algorithm in ("fedavg", "fedprox", "fednova"):
        assert found[algorithm, "iid", 2] > 0.6
        assert found[algorithm, "dirichlet", 2] > found[algorithm, "labels", 1]
