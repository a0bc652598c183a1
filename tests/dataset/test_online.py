"""Without a connection it is said at once what is not there, and what is cached is found."""

import sys
import time

import numpy as np
import pytest

from runner.dataset.online import at_once, reachable
from runner.model.timm import Timm
from tests.dataset.made import images, load, write

datasets = pytest.importorskip("datasets")
from huggingface_hub import constants  # noqa: E402


@pytest.fixture
def cut_off(monkeypatch, tmp_path):
    """Not told to be offline, and nobody answers; waiting, as before another try, is an error."""

    def waited(seconds):
        raise AssertionError(f"waits {seconds} s")

    for flag in (constants, datasets.config):
        monkeypatch.setattr(flag, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(time, "sleep", waited)
    return tmp_path


def test_a_set_that_is_nowhere(cut_off):
    with pytest.raises(ValueError, match="no .*/data/tiny/train-.*the hub cannot be asked .http://127.0.0.1:9"):
        load(cut_off)
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE  # as before


def test_a_set_that_the_hubs_library_has_cached(cut_off):
    """In the place where the library keeps what it has once downloaded."""
    for split in ("train", "test"):
        write(cut_off / f"{split}.parquet", images(6, (4, 4)), np.arange(6) % 3, names=["a", "b", "c"])
    files = {split: str(cut_off / f"{split}.parquet") for split in ("train", "test")}
    builder = datasets.load_dataset_builder("parquet", data_files=files, cache_dir=str(cut_off / "made"))
    place = cut_off / "hub" / "someone___tiny" / "default" / "0.0.0" / "hash"
    builder.dataset_name, builder.config.name = "tiny", "default"
    builder.download_and_prepare(str(place))
    assert np.array_equal(load(cut_off).train.x.numpy()[:, 0], images(6, (4, 4)))


def test_pretrained_weights(cut_off):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="could not build resnet10t: .*; the hub cannot be asked .http://127.0.0.1:9"):
        Timm((3, 32, 32), 10, "resnet10t", pretrained=True)


@pytest.mark.parametrize("told", [constants, datasets.config])
def test_the_users_own_switch_is_respected(monkeypatch, told):
    for flag in (constants, datasets.config):
        monkeypatch.setattr(flag, "HF_HUB_OFFLINE", flag is told)
    monkeypatch.setattr("huggingface_hub.get_session", None)  # nobody is asked
    assert reachable() == "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set"
    with at_once() as wrong:
        assert wrong and constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
    assert told.HF_HUB_OFFLINE


def test_where_somebody_answers_nothing_is_changed(monkeypatch):
    class Session:
        def head(self, url, timeout):
            assert url == constants.ENDPOINT and 0 < timeout <= 10

    for flag in (constants, datasets.config):
        monkeypatch.setattr(flag, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", Session)
    with at_once() as wrong:
        assert wrong is None and not constants.HF_HUB_OFFLINE
    assert "datasets.config" in sys.modules
