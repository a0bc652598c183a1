"""samples.npz and samples.png: inputs that a trained network has made."""

import io
from math import ceil, sqrt
from pathlib import Path

import numpy as np

from runner.record.files import write_atomic


def save(folder: Path, made: np.ndarray, bounds: tuple[float, float] | None) -> None:
    """Writes samples.npz: `samples` (N, *shape) in the data set's raw units, and `bounds` of these, nan where the data
    set declares none."""
    content = io.BytesIO()
    np.savez_compressed(content, samples=made, bounds=np.array(bounds or (np.nan, np.nan)))
    write_atomic(folder / "samples.npz", content.getvalue())


def draw(folder: Path, path: Path) -> None:
    """Of a folder's samples.npz: images side by side, black the low end of their range; points in a plane as points,
    of other inputs the first two numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from runner.record.curves import COLOURS, write

    with np.load(folder / "samples.npz") as file:
        made, (low, high) = file["samples"], file["bounds"]
    figure = Figure(figsize=(6, 6), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.98)
    if made.ndim == 4 and made.shape[1] in (1, 3):
        low, high = (made.min(), made.max()) if np.isnan(low) else (low, high)
        axes.imshow(tiled((made - low) / max(high - low, 1e-12)), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.axis("off")
    else:
        points = made.reshape(len(made), -1)
        axes.plot(points[:, 0], points[:, min(1, points.shape[1] - 1)], "o", markersize=4, color=COLOURS["train"])
    write(figure, path)


def tiled(images: np.ndarray) -> np.ndarray:
    """(N, C, H, W) -> one image (rows, columns) or (rows, columns, 3), with a white line between two."""
    count, channels, height, width = images.shape
    side = ceil(sqrt(count))
    whole = np.ones((side * (height + 1), side * (width + 1), channels))
    for k, image in enumerate(images):
        top, left = k // side * (height + 1), k % side * (width + 1)
        whole[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return np.clip(whole[: ceil(count / side) * (height + 1) - 1, :-1].squeeze(), 0, 1)
