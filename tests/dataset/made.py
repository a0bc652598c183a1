"""Data sets for the tests of this room: numbered samples, and folders in the hub's layout."""

import io
import json
import math
from pathlib import Path

import numpy as np
import torch

from runner.dataset import Dataset, Split
from runner.dataset.hub import Hub
from tests.conftest import ROOT

CONF = ROOT / "conf" / "dataset"


class Numbered(Dataset):
    """Sample i of the training set has input i, so that what was done to it can be read off. Labels as given."""

    shape = (1,)
    mean, std = torch.zeros(1), torch.ones(1)

    def __init__(self, labels, **settings):
        self.labels = torch.as_tensor(labels)
        super().__init__(**settings)

    def load(self):
        if self.task == "classes":
            self.classes = int(self.labels.max()) + 1
        else:
            self.classes = 1
        x = torch.arange(len(self.labels)).float()[:, None]
        return Split(x, self.labels.clone()), Split(x[:50], self.labels[:50].clone())


def prepared(labels, **settings):
    dataset = Numbered(labels, **settings)
    dataset.prepare()
    return dataset


def positions(split):
    return split.x[:, 0].long()


def whole(dataset):
    """Labels of training and validation part together, in the original order, and the original positions."""
    where = torch.cat([positions(dataset.train), positions(dataset.val)])
    order = where.argsort()
    return torch.cat([dataset.train.y, dataset.val.y])[order], where[order]


def within(count, n, p):
    """A binomial count is within five standard deviations: wrong once in two million, and the seeds are fixed."""
    return abs(count - n * p) < 5 * math.sqrt(n * p * (1 - p))


MANY = torch.arange(20000) % 10


def noisy(kind, rate, **settings):
    return whole(prepared(MANY, noise=kind, noise_rate=rate, **settings))[0]


def png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def write(path: Path, pixels, labels, image="image", label="label", names=None):
    """A parquet file as the hub writes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": png(p), "path": None} for p in pixels]
    table = pa.table(
        {image: pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), label: labels}
    )
    if names:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def images(n, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


TRAIN, TEST = images(40, (6, 5, 3)), images(10, (6, 5, 3), 1)

NAMES = ["ant", "bee", "cat"]


def tiny(folder, **settings):
    paths = {"data_dir": str(folder / "data"), "cache_dir": str(folder / "cache")}
    return Hub(**{"id": "someone/tiny", "val": 0.0} | paths | settings)


def load(folder, **settings):
    dataset = tiny(folder, **settings)
    dataset.prepare()
    return dataset


def same(a, b):
    parts = [(a.train.x, b.train.x), (a.train.y, b.train.y), (a.test.x, b.test.x), (a.test.y, b.test.y)]
    parts += [(a.mean, b.mean), (a.std, b.std)]
    return all(torch.equal(x, y) for x, y in parts) and (a.names, a.record) == (b.names, b.record)


STREAM = {"stream": True, "size": 4, "mean": [0.5], "std": [0.25]}
