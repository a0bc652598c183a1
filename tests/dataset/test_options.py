"""The data sets' options: their keys, the published maps between classes, and real data."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from runner.dataset import statistics
from runner.dataset.hub import Hub
from tests.dataset.made import CONF

# ---- the options


def options():
    return sorted(path.stem for path in CONF.glob("*.yaml") if not path.stem.startswith("_"))


@pytest.mark.parametrize("option", options())
def test_every_option_lists_every_setting(option):
    from runner.command.build import CONTEXT, check, locate, parameters

    node = yaml.safe_load((CONF / "_settings.yaml").read_text()) | yaml.safe_load((CONF / f"{option}.yaml").read_text())
    assert node.pop("defaults") == ["_settings", "_self_"]
    check(node, "dataset")
    known, open_ended = parameters(locate(node["_target_"], "dataset"))
    assert not open_ended
    assert set(node) - {"_target_"} == set(known) - CONTEXT
    assert (CONF / f"{option}.yaml").read_text().startswith("# ")
    for name in yaml.safe_load((CONF / "_settings.yaml").read_text()):
        if name != "asymmetric":
            assert node[name] == known[name].default


def published(option):
    return yaml.safe_load((CONF / f"{option}.yaml").read_text())["asymmetric"]


def test_asymmetric_maps_are_the_published_ones():
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    pairs = ["truck automobile", "bird airplane", "deer horse", "cat dog", "dog cat"]
    assert published("cifar10") == {names.index(a): names.index(b) for a, b in map(str.split, pairs)}
    assert published("mnist") == {2: 7, 3: 8, 7: 1, 5: 6, 6: 5}


SUPERCLASSES = """beaver dolphin otter seal whale
aquarium_fish flatfish ray shark trout
orchid poppy rose sunflower tulip
bottle bowl can cup plate
apple mushroom orange pear sweet_pepper
clock keyboard lamp telephone television
bed chair couch table wardrobe
bee beetle butterfly caterpillar cockroach
bear leopard lion tiger wolf
bridge castle house road skyscraper
cloud forest mountain plain sea
camel cattle chimpanzee elephant kangaroo
fox porcupine possum raccoon skunk
crab lobster snail spider worm
baby boy girl man woman
crocodile dinosaur lizard snake turtle
hamster mouse rabbit shrew squirrel
maple_tree oak_tree palm_tree pine_tree willow_tree
bicycle bus motorcycle pickup_truck train
lawn_mower rocket streetcar tank tractor"""


def test_cifar100_map_stays_within_superclasses():
    groups = [line.split() for line in SUPERCLASSES.splitlines()]
    names = sorted(name for group in groups for name in group)
    assert len(names) == 100
    mapping = {names[a]: names[b] for a, b in published("cifar100").items()}
    assert len(mapping) == 100
    for group in groups:
        # next in alphabetical order, which is the order of the class ids, and the last to the first
        assert [mapping[name] for name in group] == group[1:] + group[:1]


# ---- real data


def real(name, data_dir, cache, **settings):
    if not (Path(data_dir) / name).is_dir():
        pytest.skip(f"no {name} in {data_dir}")
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    node = {key: value for key, value in node.items() if key not in ("_target_", "defaults")}
    dataset = Hub(**node | settings, data_dir=data_dir, cache_dir=str(cache), val=0.1)
    dataset.prepare()
    return dataset


def test_mnist(data_dir, tmp_path):
    dataset = real("mnist", data_dir, tmp_path)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (54000, 6000, 10000)
    assert (dataset.shape, dataset.classes, dataset.names) == ((1, 28, 28), 10, list("0123456789"))
    labels = torch.cat([dataset.train.y, dataset.val.y])
    assert torch.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    mean, std = statistics(torch.cat([dataset.train.x, dataset.val.x]))
    np.testing.assert_allclose([dataset.mean / 255, dataset.std / 255], [mean / 255, std / 255], atol=5e-5)


def test_cifar10(data_dir, tmp_path):
    dataset = real("cifar10", data_dir, tmp_path, stream=True, size=32)  # decoding 60,000 images takes too long here
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (45000, 5000, 10000)
    assert (dataset.shape, dataset.classes, dataset.names[9]) == ((3, 32, 32), 10, "truck")
    assert torch.bincount(torch.cat([dataset.train.y, dataset.val.y])).tolist() == [5000] * 10
    mean, std = statistics(torch.stack([dataset.train.x.get(i, None) for i in range(0, 45000, 15)]))
    np.testing.assert_allclose([dataset.mean / 255, dataset.std / 255], [mean / 255, std / 255], atol=0.01)
