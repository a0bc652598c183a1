"""How a table is written: for a terminal, as Markdown, LaTeX and CSV, and as a figure."""

import csv
import io
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from runner.record.curves import COLOURS, GRID, INK, within, write
from runner.record.files import write_atomic
from runner.sweep.statistics import estimate

PAPER, OURS, WIDE, SEED = "paper, ± as printed", "ours, 95 % interval", "ours, too wide to tell", "one seed"
MEAN = "mean, 95 % interval"  # where there is no paper beside it


@dataclass
class Block:
    """Lines of cells, the head first. `left` columns, and the one named seeds, are aligned left in LaTeX."""

    left: int
    lines: list[list[str]]

    @property
    def spec(self) -> str:
        return "".join("l" if i < self.left or name == "seeds" else "r" for i, name in enumerate(self.lines[0]))


@dataclass
class Panel:
    """One panel of a table's figure: a measure, and for every row its name, our values, and (value, ±) of the paper.

    wide : the names of the rows whose interval is too wide to tell anything. percent : the values are per cent.
    """

    title: str
    rows: list[tuple[str, list[float], tuple[float, float | None] | None]]
    wide: set[str] = field(default_factory=set)
    percent: bool = False


class Report:
    """A table as it is printed and saved; the subclass says what is in it."""

    header: str

    def blocks(self) -> list[Block]:
        raise NotImplementedError

    def remarks(self) -> list[str]:
        """What is missing, and whatever else a reader must know."""
        raise NotImplementedError

    def records(self) -> list[dict]:
        """One for each row, in full precision: the lines of the CSV file. Every one says what it measures."""
        raise NotImplementedError

    def panels(self) -> list[Panel]:
        raise NotImplementedError

    def text(self) -> str:
        """Aligned columns for a terminal."""
        parts = [self.header]
        for block in self.blocks():
            widths = [max(map(len, column)) for column in zip(*block.lines, strict=True)]
            lines = [[*map(str.ljust, line, widths)] for line in block.lines]
            lines.insert(1, ["-" * width for width in widths])
            parts.append("\n".join("  ".join(line).rstrip() for line in lines))
        return "\n\n".join([*parts, *filter(None, ["\n".join(self.remarks())])]) + "\n"

    def markdown(self) -> str:
        parts = ["  \n".join(self.header.splitlines())]  # two blanks: a line break
        for block in self.blocks():
            lines = [[cell.replace("|", "\\|") for cell in line] for line in block.lines]
            lines.insert(1, ["---"] * len(lines[0]))
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return "\n\n".join([*parts, *filter(None, ["\n".join(f"- {line}" for line in self.remarks())])]) + "\n"

    def latex(self) -> str:
        """A tabular for the booktabs package, or one for each block; header and remarks are comments above it."""
        lines = [f"% {line}" for line in (*self.header.splitlines(), *self.remarks())]
        for block in self.blocks():
            head, *rows = [" & ".join(map(escape, line)) + r" \\" for line in block.lines]
            lines += [rf"\begin{{tabular}}{{{block.spec}}}", r"\toprule", head, r"\midrule", *rows]
            lines += [r"\bottomrule", r"\end{tabular}", ""]
        return "\n".join(lines)

    def csv(self) -> str:
        out = io.StringIO()
        records = self.records()
        writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return out.getvalue()


def save(made: Report, folder: Path, stem: str = "table") -> None:
    """Write table.md, table.tex and table.csv, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{stem}.md", made.markdown())
    write_atomic(folder / f"{stem}.tex", made.latex())
    write_atomic(folder / f"{stem}.csv", made.csv())


def escape(text: str) -> str:
    """For LaTeX text mode."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        **{c: "\\" + c for c in "&%$#_{}"},
    }
    return re.sub(r"[\\~^±<>|&%$#_{}]", lambda match: special[match.group()], text)


def draw(made: Report, path: Path, title: str = "") -> None:
    """A figure as the suffix of the path says (.png, .pdf, .svg), written atomically: for every measure a panel, for
    every row our mean with its 95 % interval and each seed's value as a faint point, above it what the paper prints.
    An interval that is too wide to tell is dotted, and does not stretch the axis. At most 60 rows; the figure says so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = made.panels()
    count = len(panels[0].rows)
    rows = min(count, 60)
    longest = max(len(name) for name, *_ in panels[0].rows[:rows])
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    size = 0.5 + min(0.075 * longest, 4.5) + 3.6 * across, 1.1 + down * (0.9 + rows * (0.5 if rows < 20 else 0.3))
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = [*figure.subplots(down, across, squeeze=False, sharey=True).flat]
    marks = {}
    for axes, panel in zip(grid, panels):
        marks |= _panel(axes, panel, rows)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    heading = [*title.splitlines(), *([f"the first {rows} of {count} rows"] if count > rows else [])]
    if heading:
        heading = [textwrap.fill(line, int(11 * size[0])) for line in heading]
        figure.suptitle("\n".join(heading), x=0.01, ha="left", fontsize=11, color=INK)
    if PAPER not in marks and OURS in marks:
        marks[MEAN] = marks.pop(OURS)
    marks = {name: marks[name] for name in (PAPER, OURS, WIDE, MEAN, SEED) if name in marks}
    where = {"loc": "outside lower left", "ncols": 4, "frameon": False, "fontsize": 9}
    figure.legend(marks.values(), marks.keys(), labelcolor=INK, **where)
    write(figure, path)


def _panel(axes, panel: Panel, rows: int) -> dict:
    """Draw one panel; returns a mark for each kind of thing in it, for the legend."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    marks, ends = {}, []
    apart = 0.16 if any(printed for *_, printed in panel.rows) else 0
    for y, (name, values, printed) in enumerate(panel.rows[:rows]):
        if printed:
            value, bar = printed
            ends += [value - (bar or 0), value + (bar or 0)]
            style = {"fmt": "D", "color": COLOURS["test"], "markersize": 5, "capsize": 3}
            marks[PAPER] = axes.errorbar([value], [y - apart], xerr=bar, **style)
            marks[PAPER][0].set_clip_on(False)  # a point at 100 % is whole
        if values:
            found, style = estimate(values), {"color": COLOURS["train"], "capsize": 3, "markersize": 6}
            wide = name in panel.wide
            half = found.half or 0
            ends += [*values, *([] if wide else [found.mean - half, found.mean + half])]
            style |= {"markerfacecolor": "white", "capsize": 0} if wide else {}
            bars = axes.errorbar([found.mean], [y + apart], xerr=found.half, fmt="o", **style)
            bars[0].set_clip_on(False)
            if wide:
                bars[2][0].set_linestyle((0, (1, 2)))
            marks[WIDE if wide else OURS] = bars
            below = [y + apart + (0.12 if rows < 20 else 0.2)] * len(values)
            style = {"color": COLOURS["train"], "alpha": 0.4, "markersize": 3.5, "markeredgewidth": 0, "clip_on": False}
            marks[SEED] = axes.plot(values, below, "o", **style)[0]
        else:
            at = axes.get_yaxis_transform()
            axes.text(0.02, y + apart, "missing", transform=at, va="center", color="#999999", fontsize=9)
    names = [name if len(name) <= 64 else f"{name[:61]}..." for name, *_ in panel.rows[:rows]]
    axes.set_yticks(range(rows), names)
    axes.xaxis.set_major_locator(MaxNLocator(5) if marks else NullLocator())
    axes.set_ylim(rows - 0.5, -0.5)  # the first row above
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if ends:
        axes.set_xlim(*within(min(ends), max(ends), panel.percent))
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")
    return marks
