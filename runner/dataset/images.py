"""Encoded images: decoded as the `datasets` library does it, resized and cropped, or kept until they are asked for."""

import io
import math

import numpy as np
import torch
from torch import Tensor

MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}
ORIENTATION = 0x0112  # the EXIF tag: how the camera was held


def decode(cell, channels: int | None, place: str):
    """A cell of an image column as PIL's image, upright, of mode L or RGB.

    As `datasets.Image` decodes it: the first frame, turned as its EXIF or XMP orientation says. Then, which `datasets`
    leaves to its user, converted by PIL: colours of a palette, and what transparency covers, as they are stored.

    Parameters
    ----------
    cell : {"bytes": ..., "path": ...}, or bytes.
    channels : 1 or 3; None: as stored.
    place : what messages call the image.

    Raises
    ------
    ValueError
        It cannot be decoded, or has pixels of more than eight bits, which would be clipped.
    """
    from PIL import Image, ImageOps

    try:
        image = Image.open(_source(cell))
        image.load()
        if image.getexif().get(ORIENTATION) is not None:
            image = ImageOps.exif_transpose(image)
        mode = {None: MODES.get(image.mode), 1: "L", 3: "RGB"}[channels]
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colours, without a warning
        known = image.mode in MODES
        image = image.convert(mode) if known and image.mode != mode else image
    except Exception as error:  # PIL has no class of its own for what it meets in a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{place} cannot be decoded: {reason}") from error
    if not known:
        raise ValueError(f"{place} has pixels of kind {image.mode}; only 8-bit images are supported")
    return image


def _source(cell):
    if isinstance(cell, bytes):
        return io.BytesIO(cell)
    return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]


class Encoded:
    """Images that stay encoded until they are asked for; follows `runner.dataset.Images`.

    rows: a `datasets.Dataset` with undecoded images in `column`; index: (N,) which rows, in order; place: what messages
    call the rows.
    """

    def __init__(
        self, rows, index: Tensor, column: str, channels: int, size: int, resize: int, random_crop: bool, place: str
    ):
        self.rows, self.index = rows, index
        self.settings = (column, channels, size, resize, random_crop, place)
        self.column, self.channels, self.size, self.resize = column, channels, size, resize
        self.random_crop, self.place = random_crop, place

    def __len__(self) -> int:
        return len(self.index)

    def select(self, index: Tensor) -> "Encoded":
        return Encoded(self.rows, self.index[index], *self.settings)

    def get(self, i: int, seed: int | None) -> Tensor:
        """(C, size, size) uint8; with a seed and `random_crop`, a random resized crop, else the centre."""
        row = int(self.index[i])
        image = decode(self.rows[row][self.column], self.channels, f"image {row} of {self.place}")
        if self.random_crop and seed is not None:
            image = random_resized_crop(image, self.size, np.random.Generator(np.random.Philox(seed)))
        else:
            image = centre(image, self.size, self.resize)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return pixels.view(self.size, self.size, -1).permute(2, 0, 1)


def sizes(rows) -> Tensor:
    """(N,) int64, the bytes of every encoded image: of all that the images hold, what is quick to read."""
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.binary_length(pc.struct_field(rows.data.column(0), "bytes")), -1)
    return torch.from_numpy(lengths.to_numpy().astype(np.int64))


def some(rows) -> Tensor:
    """The bytes of sixteen images, evenly spaced, one after another."""
    chosen = torch.linspace(0, len(rows) - 1, min(16, len(rows))).long().unique().tolist()
    cells = [rows[i][rows.column_names[0]] for i in chosen]
    data = b"".join(str(cell["path"]).encode() if cell["bytes"] is None else cell["bytes"] for cell in cells)
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def centre(image, size: int, resize: int):
    """The shorter side resized to `resize`, then the size x size centre."""
    from PIL import Image

    width, height = image.size
    if min(width, height) != resize:
        scaled = (resize, int(resize * height / width)) if width <= height else (int(resize * width / height), resize)
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        width, height = scaled
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image if (width, height) == (size, size) else image.crop((left, top, left + size, top + size))


def random_resized_crop(image, size: int, draw: np.random.Generator):
    """A part of 8 to 100 % of the area and of aspect 3/4 to 4/3, resized to size x size and flipped half of the time.

    Ten tries, then the largest central part within the aspects, as torchvision's RandomResizedCrop does.
    """
    from PIL import Image

    width, height = image.size
    for _ in range(10):
        area = width * height * draw.uniform(0.08, 1.0)
        aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(0, width - w + 1)), int(draw.integers(0, height - h + 1))
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    image = image.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BILINEAR)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else image
