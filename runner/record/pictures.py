"""reliability.png, classes.png and confusion.png: how far the confidence can be trusted, how well each class is known,
and what it is taken for.

    python -m runner.record.pictures outputs/NAME[/ID] [--format png|pdf|svg]

draws these and a run's other pictures again, from what its folder holds. Both are drawn without matplotlib's axes:
those and their ticks take five times as long as all that is in them, and a sweep of short runs draws many.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from runner.core.measure import FEW, MANY
from runner.record import clients, curves, grid, layers
from runner.record.curves import COLOURS, FORMATS, FRAME, GRID, INK, write
from runner.record.files import finished, history, read_config, runs

NAMED = 20  # at most so many classes have their names below them
WIDEST = 100  # at most so many classes have a picture of which was taken for which
QUIET = "#777777"


def of(result: dict) -> dict[str, Callable[[Path], None]]:
    """Name -> what draws it to a path, of these two, for what result.json holds; one that lacks their numbers has none.

    Where a loss defines no probabilities, neither as it is nor after temperature scaling, there is no reliability.
    """
    drawn, classes_, bins = {}, result.get("classes") or {}, result.get("reliability") or {}
    if "samples" in classes_:
        accuracy = np.array(classes_["last"], dtype=float)  # null: no test sample
        drawn["classes"] = partial(classes, accuracy, np.array(classes_["samples"]), classes_["names"])
    if classes_.get("confused") and len(classes_["confused"]) <= WIDEST:
        drawn["confusion"] = partial(confusion, np.array(classes_["confused"]), classes_.get("names"))
    as_trained, scaled = (None if bins.get(key) is None else np.array(bins[key]) for key in ("bins", "scaled"))
    if as_trained is not None or scaled is not None:
        temperature = (result.get("last") or {}).get("temperature")
        drawn["reliability"] = partial(reliability, as_trained, scaled, temperature)
    return {f"{name}.png": draw for name, draw in drawn.items()}


def confusion(counts: np.ndarray, names: list[str] | None, path: Path) -> None:
    """Of each class, a row, the share of its test samples that was taken for each, a column; in a square the count,
    where there is room. A PNG of 760 x 760 pixels, or as the path's suffix says.

    counts (C, C) of which a row without samples stays empty; names of the classes, or None for their numbers.
    """
    size = len(counts)
    figure = _figure(7.6, 7.6, "What test samples were taken for, last epoch")
    panel = Panel(figure, (0.13, 0.09, 0.84, 0.84), (-0.5, size - 0.5), (size - 0.5, -0.5))
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rows, columns = np.nonzero(counts)
    tints = 0.06 + 0.94 * share[rows, columns, None]
    shades = 1 - tints * (1 - np.array([int(COLOURS["train"][i : i + 2], 16) / 255 for i in (1, 3, 5)]))
    panel.bars(columns - 0.5, columns + 0.5, rows - 0.5, rows + 0.5, color=shades)
    panel.line([-0.5, -0.5, size - 0.5, size - 0.5, -0.5], [-0.5, size - 0.5, size - 0.5, -0.5, -0.5], color=FRAME)
    for k in range(size) if size <= NAMED else ():
        label = str(names[k] if names else k)[:11]
        panel.text(-0.5, k, label, left=5, ha="right", va="center", fontsize=9)
        turned = {"rotation": 30, "ha": "right"} if names and max(map(len, map(str, names))) > 4 else {"ha": "center"}
        panel.text(k, size - 0.5, label, below=5, va="top", fontsize=9, **turned)
    for row, column in zip(rows, columns, strict=True) if size <= NAMED else ():
        ink = "white" if share[row, column] > 0.5 else INK
        panel.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=8, color=ink)
    write(figure, path)


def redraw(folder: Path, format: str = "png") -> list[Path]:
    """All pictures of a run, from what its folder holds; of one that is not done those that there can be.

    Returns their paths. Raises ValueError where the folder holds no run.
    """
    read_config(folder)
    result, drawn = finished(folder) or {}, {}
    if records := history(folder):
        drawn["curves.png"] = partial(curves.draw, records)
    drawn |= of(result)
    if table := (result.get("quantization") or {}).get("layers"):
        drawn["quantization.png"] = partial(layers.draw, table)
    if (folder / "samples.npz").exists():
        drawn["samples.png"] = partial(grid.draw, folder)
    if (folder / "partition.npz").exists():
        drawn["partition.png"] = partial(clients.picture, folder)
    paths = []
    for name, draw in drawn.items():
        paths.append((folder / name).with_suffix(f".{format}"))
        draw(paths[-1])
    return paths


def reliability(bins: np.ndarray | None, scaled: np.ndarray | None, temperature: float | None, path: Path) -> None:
    """Accuracy over mean confidence in bins of equal width, with Wilson's 95 % intervals, and below how many samples
    are in each; as trained and, where there is a temperature, after scaling. Bins of one sample are hollow points that
    no line goes through. A PNG of 640 x 640 pixels, or as the path's suffix says.

    bins, scaled : (3, M) as of `runner.core.measure.binned`, one of them at least; bins None: the loss defines none.
    """
    figure = _figure(6.4, 6.4, "Reliability on the test split, last epoch")
    upper = Panel(figure, (0.11, 0.34, 0.85, 0.55), (0, 100), (0, 100))
    upper.grid(range(0, 101, 20), range(0, 101, 20), "accuracy (%)")
    upper.line([0, 100], [0, 100], color=FRAME, linestyle="--")
    shown = [] if bins is None else [(bins, "as trained", COLOURS["test"], "o")]
    if scaled is not None:
        shown.append((scaled, f"temperature {temperature:.3g}", COLOURS["train"], "s"))
    lower = Panel(figure, (0.11, 0.1, 0.85, 0.19), (0, 100), _decades([part[0] for part, *_ in shown]))
    lower.grid(range(0, 101, 20), None, "samples")
    lower.label_x("confidence (%)")
    edges = np.linspace(0, 100, shown[0][0].shape[1] + 1)
    for i, ((count, sure, hits), label, colour, marker) in enumerate(shown):
        there = count > 0
        n, rate, x = count[there], 100 * hits[there] / count[there], 100 * sure[there] / count[there]
        upper.bars(x - 0.1, x + 0.1, *(100 * wilson(rate / 100, n)), color=colour, alpha=0.5)
        several = n > 1  # the accuracy of one sample is 0 or 100 %: a point, and no part of a line
        upper.line(x[several], rate[several], color=colour, marker=marker)
        upper.line(x[~several], rate[~several], color=colour, marker=marker, linestyle="", hollow=True)
        if i == 0:
            lower.bars(edges[:-1], edges[1:], lower.y[0], _log(count), color=colour, alpha=0.45)
        else:
            lower.line(np.repeat(edges, 2)[1:-1], np.repeat(_log(count), 2), color=colour)
        error = 100 * abs(hits - sure).sum() / count.sum()
        upper.line([1 + 50 * i], [105], color=colour, marker=marker)
        upper.text(3.5 + 50 * i, 105, f"{label}: ECE {error:.2f} %", va="center")
    write(figure, path)


def classes(accuracy: np.ndarray, counts: np.ndarray, names: list[str] | None, path: Path) -> None:
    """The test accuracy of each class, in the order of their numbers, and below how many training samples it has. The
    means of the groups of `runner.core.measure.group_accuracy` are said, and drawn where a group's classes stand
    together, as those of a long tail do. A PNG of 900 x 480 pixels, or as the path's suffix says.

    accuracy (C,), nan where a class was not tested; counts (C,); names of the classes, or None for their numbers.
    """
    accuracy, size = 100 * accuracy, len(accuracy)
    figure = _figure(9.0, 4.8, "Test accuracy of each class, last epoch")
    upper = Panel(figure, (0.08, 0.46, 0.9, 0.39), (-0.5, size - 0.5), (0, 100))
    upper.grid(None, range(0, 101, 20), "accuracy (%)")
    lower = Panel(figure, (0.08, 0.17, 0.9, 0.23), upper.x, _decades([counts]))
    at, half = np.arange(size), 0.4 if size <= 100 else 0.5
    upper.bars(at - half, at + half, 0, np.nan_to_num(accuracy), color=COLOURS["train"], alpha=0.75)
    lower.bars(at - half, at + half, lower.y[0], _log(counts), color=FRAME)
    lower.grid(None, None, "training samples")
    groups = {
        f"more than {MANY}": counts > MANY,
        f"{FEW} to {MANY}": (counts >= FEW) & (counts <= MANY),
        f"fewer than {FEW}": counts < FEW,
    }
    said = []
    for name, group in groups.items():
        if (group & ~np.isnan(accuracy)).any():
            mean, where = np.nanmean(accuracy[group]), np.flatnonzero(group)
            said.append(f"{name}: {mean:.2f} %")
            if where[-1] - where[0] + 1 > len(where):
                continue
            upper.line([where[0] - 0.5, where[-1] + 0.5], [mean, mean], color=INK)
            if where[0]:
                upper.line([where[0] - 0.5] * 2, upper.y, color=QUIET, linestyle=":")
    upper.text(-0.5, 108, "mean by training samples:  " + ",  ".join(said), va="center")
    if size <= NAMED:
        labels = [str(names[k] if names else k)[:14] for k in range(size)]
        long = max(map(len, labels)) > 4
        turned = {"rotation": 30, "ha": "right"} if long else {"ha": "center"}
        for i, label in enumerate(labels):
            lower.text(i, lower.y[0], label, below=5, va="top", fontsize=9, **turned)
    else:
        long, places = False, range(0, size, 10 ** max(0, len(str(size)) - 2) * (1 if size < 200 else 2))
        for i in places:
            lower.text(i, lower.y[0], str(i), below=5, va="top", ha="center", fontsize=9)
    lower.label_x("class", below=48 if long else 22)
    write(figure, path)


def wilson(rate: np.ndarray, n: np.ndarray, z: float = 1.96) -> np.ndarray:
    """(2, M): the ends of the 95 % interval of a share, of n samples each (Wilson 1927)."""
    middle = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return np.stack([middle - half, middle + half])


class Panel:
    """A rectangle of a figure with coordinates of its own.

    box : left, bottom, width and height as shares of the figure. x, y : what is at its ends.
    """

    def __init__(self, figure, box: tuple, x: tuple, y: tuple):
        from matplotlib.transforms import Affine2D

        self.figure, self.x, self.y = figure, x, y
        left, bottom, width, height = box
        wide, high = width / (x[1] - x[0]), height / (y[1] - y[0])
        place = Affine2D.from_values(wide, 0, 0, high, left - wide * x[0], bottom - high * y[0])
        self.transform = place + figure.transFigure
        inches = figure.get_size_inches()
        self.point = 1 / (72 * inches[0] * wide), 1 / (72 * inches[1] * high)  # a 72nd of an inch, in x and in y

    def line(self, x, y, marker=None, linestyle="-", color=INK, hollow=False) -> None:
        from matplotlib.lines import Line2D

        style = {"linewidth": 1.6, "markersize": 5, "marker": marker, "linestyle": linestyle, "color": color}
        style |= {"markerfacecolor": "white"} if hollow else {}
        self.figure.add_artist(Line2D(x, y, transform=self.transform, **style))

    def bars(self, left, right, bottom, top, color, alpha=1.0) -> None:
        """Rectangles between arrays."""
        from matplotlib.collections import PolyCollection

        corners = [(left, bottom), (left, top), (right, top), (right, bottom)]
        corners = [np.stack(np.broadcast_arrays(*corner), -1) for corner in corners]
        bars = PolyCollection(np.stack(corners, 1), transform=self.transform, color=color, alpha=alpha, linewidth=0)
        self.figure.add_artist(bars)

    def text(self, x, y, text, left=0.0, below=0.0, **style) -> None:
        """At a point, or so many 72nds of an inch from it."""
        where = x - left * self.point[0], y - below * self.point[1]
        self.figure.text(*where, text, transform=self.transform, **{"color": INK, "fontsize": 10} | style)

    def grid(self, x, y, label: str) -> None:
        """Lines and numbers at these places, and what the vertical ones mean; y None: powers of ten, by logarithm."""
        from matplotlib.collections import LineCollection

        powers = range(int(self.y[1]) + 1)
        lines = [[(at, self.y[0]), (at, self.y[1])] for at in x or ()]
        lines += [[(self.x[0], at), (self.x[1], at)] for at in (powers if y is None else y)]
        style = {"transform": self.transform, "linewidth": 0.8, "zorder": 0}
        self.figure.add_artist(LineCollection(lines, color=GRID, **style))
        corner = [[(self.x[0], self.y[1]), (self.x[0], self.y[0]), (self.x[1], self.y[0])]]
        self.figure.add_artist(LineCollection(corner, color=FRAME, **style))
        for at in x or ():
            self.text(at, self.y[0], str(at), below=5, ha="center", va="top")
        for at in powers if y is None else y:
            self.text(self.x[0], at, f"{10**at:,}" if y is None else str(at), left=5, ha="right", va="center")
        middle = sum(self.y) / 2
        self.text(self.x[0], middle, label, left=36, rotation=90, ha="right", va="center")

    def label_x(self, label: str, below: float = 22) -> None:
        self.text(sum(self.x) / 2, self.y[0], label, below=below, ha="center", va="top")


def _log(counts: np.ndarray) -> np.ndarray:
    """The decimal logarithm, and less than that of one sample where there is none."""
    return np.log10(np.maximum(counts, 0.5))


def _decades(counts: list[np.ndarray]) -> tuple[float, float]:
    """The ends of an axis for the logarithm of counts."""
    return np.log10(0.5), max(1.0, *(_log(own).max() for own in counts)) + 0.1


def _figure(width: float, height: float, title: str):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    style = {"fontsize": 12, "fontweight": "bold", "color": INK}
    figure.text(0.7 / width, 1 - 0.3 / height, title, va="center", **style)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runner.record.pictures", description="Draw the pictures of runs again."
    )
    parser.add_argument("folder", type=Path, help="outputs/NAME or outputs/NAME/ID")
    parser.add_argument("--format", choices=FORMATS, default="png", help="default png")
    parser.error = lambda message: parser.exit(2, f"{message}\n")
    given = parser.parse_args(arguments)
    try:
        for folder in runs(given.folder):
            print(f"{folder}: {', '.join(path.name for path in redraw(folder, given.format))}")
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
