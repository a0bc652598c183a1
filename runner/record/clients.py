"""partition.png: who has which sample of a federation."""

from pathlib import Path

import numpy as np

from runner.record.curves import GRID, INK, write


def picture(folder: Path, path: Path) -> None:
    """Of the partition.npz that a federation has written in its folder: samples of every client, as bars, over samples
    of every class at every client, as a heat map; a PNG, or as the path's suffix says.

    Bars alone where it has no `counts`, (classes, clients). Colours go with the square root of the count, so that a
    class's few samples are seen beside its thousands; where there is room the counts are printed.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap, PowerNorm
    from matplotlib.figure import Figure  # as runner.record.curves: not pyplot
    from matplotlib.ticker import MaxNLocator

    with np.load(folder / "partition.npz") as file:
        facts = {name: file[name] for name in file.files}
    counts, owner, clients = facts.get("counts"), facts["owner"], facts["clients"].item()
    sizes = np.bincount(owner[owner >= 0], minlength=clients)
    width = float(np.clip(0.52 * clients, 4.2, 9))
    classes = 0 if counts is None else len(counts)
    height = 0 if counts is None else float(np.clip(0.27 * classes, 0.7, 5))
    left, right, bottom, gap, bars, top = 0.75, 0.95, 0.55, 0.12, 1.1, 0.45  # inches
    total = bottom + height + (gap if height else 0) + bars + top
    figure = Figure(figsize=(left + width + right, total), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)

    def place(x, y, w, h):
        return figure.add_axes((x / (left + width + right), y / total, w / (left + width + right), h / total))

    upper = place(left, total - top - bars, width, bars)
    if clients <= 50:
        upper.bar(range(clients), sizes, color="#6baed6")
    else:
        upper.stairs(sizes, np.arange(clients + 1) - 0.5, fill=True, color="#6baed6")  # one shape, not a thousand bars
    upper.axhline(sizes.mean(), color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    beside = dict(transform=upper.get_yaxis_transform(), va="center", fontsize=8, color=INK)
    upper.text(1.01, sizes.mean(), f"mean {sizes.mean():,.0f}", **beside)
    upper.set_ylabel("samples", color=INK)
    upper.set_ylim(0, 1.08 * sizes.max())
    upper.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    upper.yaxis.set_major_formatter("{x:,.0f}")
    drawn = [upper]
    if counts is not None:
        lower = place(left, bottom, width, height)
        colours = ListedColormap(colormaps["Blues"](np.linspace(0.12, 1, 256)))
        norm = PowerNorm(0.5, vmin=0, vmax=counts.max())
        image = lower.imshow(np.ma.masked_equal(counts, 0), colours, norm, aspect="auto", interpolation="nearest")
        if clients <= 20 and classes <= 20:
            for (label, client), count in np.ndenumerate(counts):
                if count:
                    ink = "white" if norm(count) > 0.6 else INK
                    lower.text(client, label, count, ha="center", va="center", fontsize=7, color=ink)
        if classes <= 20:
            lower.hlines(np.arange(classes - 1) + 0.5, -0.5, clients - 0.5, color=GRID, linewidth=0.8)
        if clients <= 20:
            lower.vlines(np.arange(clients - 1) + 0.5, -0.5, classes - 0.5, color=GRID, linewidth=0.8)
        bar = figure.colorbar(image, cax=place(left + width + 0.15, bottom, 0.12, height))
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, colors=INK, length=0)
        lower.set_ylabel("class", color=INK)
        lower.yaxis.set_major_locator(MaxNLocator(nbins=min(classes, 20), integer=True, min_n_ticks=1))
        drawn.append(lower)
    for axes in drawn:
        axes.set_xlim(-0.5, clients - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=20, integer=True, min_n_ticks=1))
        axes.tick_params(colors=INK, length=0, labelsize=8, labelbottom=axes is drawn[-1])
        axes.spines[["top", "right"]].set_visible(axes is not upper)
        for spine in axes.spines.values():
            spine.set_color("#bbbbbb")
    drawn[-1].set_xlabel("client", color=INK)
    shown = [f"{name}={facts[name].item():g}" for name in ("alpha", "labels") if name in facts]
    title = ", ".join([facts["kind"].item(), *shown])
    title += f": {clients} client{'s' * (clients > 1)}, {sizes.sum():,} of {len(owner):,} samples"
    upper.set_title(title, loc="left", fontsize=10, color=INK)
    write(figure, path)
