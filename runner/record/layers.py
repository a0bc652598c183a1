"""quantization.png: what became of every quantized layer."""

import math
from pathlib import Path


def draw(table: list[dict], path: Path) -> None:
    """Bits and error of every layer as a picture, a PNG or as the path's suffix says."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullLocator

    from runner.record.curves import COLOURS, FRAME, GRID, INK, write

    names = [row["name"] for row in table]
    figure = Figure(figsize=(12, 1.2 + 0.28 * max(len(names), 6)), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    errors = [row["error"] if row["error"] else math.nan for row in table]
    for axes, values, title, colour in (
        (left, [row["bits"] for row in table], "Stored bits for each weight", COLOURS["train"]),
        (right, errors, "Squared error of the output, relative", COLOURS["test"]),
    ):
        if axes is left:
            axes.barh(range(len(names)), values, color=colour, height=0.7)
        else:  # points, as a bar's length means nothing on a logarithmic axis
            axes.plot(values, range(len(names)), "o", color=colour, clip_on=False)
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, length=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FRAME)
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    measured = [math.log10(error) for error in errors if error == error]
    if measured:  # whole powers of ten at both ends, and numbers at these alone
        right.set_xscale("log")
        low, high = math.floor(min(measured)), math.ceil(max(measured))
        right.set_xlim(10.0**low, 10.0 ** max(high, low + 1))
        right.xaxis.set_minor_locator(NullLocator())
    else:
        right.set_xticks([])
        right.text(0.5, 0.5, "not measured", transform=right.transAxes, ha="center", va="center", color="#999999")
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.invert_yaxis()
    write(figure, path)
