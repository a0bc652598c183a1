"""curves.png: loss, accuracy and learning rate over training, from the records of metrics.jsonl."""

import io
from pathlib import Path

from runner.record.files import write_atomic

FORMATS = ("png", "pdf", "svg")
INK, GRID, FRAME = "#333333", "#e6e6e6", "#bbbbbb"
COLOURS = {"train": "#0072b2", "val": "#e69f00", "test": "#d55e00", "lr": "#555555"}  # Okabe and Ito: colour-blind safe

# What a panel may show: the record's key, label, colour, line style
LOSSES = [
    ("train_loss", "train loss", "train", "-"),
    ("val_nll", "val. NLL", "val", "-"),
    ("test_nll", "test NLL", "test", "-"),
]
ACCURACIES = [
    ("train_accuracy", "train", "train", "-"),
    ("val_accuracy", "val.", "val", "-"),
    ("test_accuracy", "test", "test", "-"),
]
ERRORS = [
    ("train_rmse", "train RMSE", "train", "-"),
    ("val_rmse", "val. RMSE", "val", "-"),
    ("test_rmse", "test RMSE", "test", "-"),
    ("train_mae", "train MAE", "train", ":"),
    ("val_mae", "val. MAE", "val", ":"),
    ("test_mae", "test MAE", "test", ":"),
]
RATES = [("lr", "learning rate", "lr", "-")]


def write(figure, path: Path) -> None:
    """A figure as the suffix of the path says (.png, .pdf, .svg), atomically; text in a PDF stays text."""
    from matplotlib import rc_context

    content, kind = io.BytesIO(), path.suffix[1:]
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(content, format=kind, **({"pil_kwargs": {"compress_level": 1}} if kind == "png" else {}))
    write_atomic(path, content.getvalue())


def within(low: float, high: float, percent: bool, share: float = 0.08) -> tuple[float, float]:
    """The ends of an axis on which values from low to high keep a margin, a share of their distance; per cent end at 0
    and at 100."""
    margin = share * (high - low) or share * abs(high) or share
    low, high = low - margin, high + margin
    return (max(low, 0.0), min(high, 100.0)) if percent else (low, high)


def series(history: list[dict], key: str, x: str) -> tuple[list[float], list[float]]:
    """The points at which the measure was taken: one taken every few epochs is still one line."""
    points = [(record[x], record[key]) for record in history if record.get(key) is not None]
    return [point[0] for point in points], [point[1] for point in points]


def draw(history: list[dict], path: Path) -> None:
    """Three panels side by side, as a PNG of 1200 x 360 pixels or as the path's suffix says, written atomically.

    history: records as `Record.log` takes them; a measure may be absent or None in any of them. Accuracies are
    fractions there and per cent here. The middle panel of a regression shows RMSE and MAE, in units of the target.
    The horizontal axis is the epoch, of a federation the round, or the step where an epoch has several records.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: it costs more to import and keeps every figure alive

    epochs = [record.get("epoch") for record in history]
    x = "epoch" if None not in epochs and len(set(epochs)) == len(epochs) else "step"
    regression = any(series(history, key, x)[0] for key, *_ in ERRORS)

    figure = Figure(figsize=(12, 3.6), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    # fixed margins: finding them takes as long as drawing, and a sweep draws many
    figure.subplots_adjust(left=0.045, right=0.985, bottom=0.14, top=0.77, wspace=0.16)
    left, middle, right = figure.subplots(1, 3)
    panel(left, history, x, LOSSES, "Loss and NLL (nats)" if series(history, "test_nll", x)[0] else "Loss")
    if regression:
        panel(middle, history, x, ERRORS, "Error, in units of the target")
    elif first := own(history):
        lines = [(f"{of}_{first}", f"{of}{'.' * (of == 'val')}", of, "-") for of in ("val", "test")]
        share = {"factor": 100, "value": "{:.2f} %"} if "accuracy" in first else {}
        panel(middle, history, x, lines, first.replace("_", " ") + " (%)" * bool(share), **share)
    else:
        panel(middle, history, x, ACCURACIES, "Accuracy (%)", factor=100, value="{:.2f} %")
    panel(right, history, x, RATES, "Learning rate")

    write(figure, path)


def own(history: list[dict]) -> str | None:
    """The first measure of a loss that has measures of its own."""
    keys = [key for record in history[-1:] for key in record]
    if {"test_accuracy", "test_nll"} & set(keys):
        return None
    return next((key.removeprefix("test_") for key in keys if key.startswith("test_")), None)


def panel(axes, history, x, shown, title, factor=1.0, value="{:.3g}") -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = []
    for key, label, colour, style in shown:
        at, values = series(history, key, x)
        if at:
            values = [factor * v for v in values]
            # a single epoch is a point and a short run shows its points; a long one is a line
            marker = "o" if len(at) <= 30 else None
            label = f"{label}  {value.format(values[-1])}"
            style = {"linestyle": style, "color": COLOURS[colour], "linewidth": 1.8}
            axes.plot(at, values, marker=marker, markersize=4, label=label, clip_on=False, **style)
            drawn += values
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, y=1.16)
    rounds = x == "epoch" and any("bytes_up" in record for record in history)  # of a federation
    axes.set_xlabel("round" if rounds else x, color=INK)
    axes.xaxis.set_label_coords(0.5, -0.1)  # placed, as the title: matplotlib would measure every tick's text
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    last = max((record[x] for record in history), default=1)
    axes.set_xlim(0, max(1.04 * last, last + 0.4))
    if not drawn:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="#999999")
        return
    if factor == 100:
        axes.set_ylim(*within(min(drawn), max(drawn), percent=True))
    elif min(drawn) >= 0:
        axes.set_ylim(0, 1.06 * max(drawn) or 1)
    if len(shown) == 1:
        axes.yaxis.set_major_formatter("{x:g}")
        return
    # above the panel, where no line comes; each with its value at the end
    where = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "ncols": 3, "columnspacing": 0.9, "handlelength": 1.1}
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, borderaxespad=0.2, handletextpad=0.4, **where)
