"""Images and labels of sets in the hub's layout, resident and streamed, against what `datasets` makes of the files."""

import numpy as np

from tests.test_dataset import STREAM, images, load, write


def test_a_streams_fingerprint_depends_on_images_and_labels(tmp_path):
    def of(pixels, labels):
        root = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        for split in ("train", "test"):
            write(root / "data" / "tiny" / f"{split}-0.parquet", pixels, labels)
        return load(root, **STREAM).record["fingerprint"]

    pixels, labels = images(40, (6, 5, 3)), np.arange(40) % 3
    other = pixels.copy()
    other[7] = 0  # not among the sixteen that are read: its size tells
    found = [of(pixels, labels), of(other, labels), of(pixels, labels[::-1]), of(pixels[::-1], labels)]
    assert len(set(found)) == 4
    assert of(pixels, labels) == found[0]
    assert all(len(digest) == 64 for digest in found)
