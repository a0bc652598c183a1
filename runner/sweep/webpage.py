"""report.html: a folder of runs to look at, in one file that needs no network.

    python -m runner.report outputs/NAME

The table, sortable, and an experiment's own beside it; curves of all runs, grouped by what varies, with the mean and
its 95 % interval over the seeds; results over the numbers that were swept; every run with what it differs in, its
pictures, and why it failed. Drawn by Bokeh: pip install -e ".[report]".
"""

import argparse
import csv
import html
import json
import math
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.core.output import near, unbreakable
from runner.record.files import finished, history, read_yaml, write_atomic
from runner.sweep.report import Report
from runner.sweep.rows import order, shown
from runner.sweep.runs import ABSENT, Run, group, read, runs_under, varying
from runner.sweep.statistics import estimate
from runner.sweep.table import table

HERE = Path(__file__).parent
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#a6761d", "#666666")  # Okabe and Ito's
SKIP = ("step", "epoch", "seconds")  # of a record: no measures
FIRST = ("test_accuracy", "val_accuracy", "test_nll", "train_loss")


def available() -> bool:
    """Whether what draws it is installed."""
    from importlib.util import find_spec

    return find_spec("bokeh") is not None


def write(folder: Path, made: Report | None = None, folders: list[Path] | None = None) -> Path:
    """report.html in this folder, of these runs, by default all in it, and of a table that was made of them.

    Raises ValueError where there is no run.
    """
    folders = runs_under(folder) if folders is None else folders
    if not folders:
        raise ValueError(f"no runs in {folder}")
    runs, damaged = [], []
    for place in folders:
        try:
            runs.append(_read(place))
        except ValueError as damage:
            damaged.append(str(damage))
    if not runs:
        raise ValueError(f"none of the {len(folders)} folders in {folder} holds a run: {damaged[0]}")
    parts = tables(folder, folders, made)
    content = data(folder, runs)
    path = folder / "report.html"
    write_atomic(path, page(folder, runs, damaged, parts, content))
    return path


def offered(folder: Path, made: Report, folders: list[Path]) -> str:
    """Write it at the end of an experiment, where that can be; the line to say."""
    if not available():
        return f'to look at it: pip install -e ".[report]", then python -m runner.report {near(folder)}'
    try:
        return f"to look at it: {near(write(folder, made, [path for path in folders if path.exists()]))}"
    except ValueError as error:
        return f"no report.html: {error}"


def _read(place: Path) -> Run:
    """A run with its whole result; `missing` says why there is none."""
    run = read(place, "last", "")
    run.result = finished(place) or {}
    run.missing = None if run.result else run.missing
    return run


def tables(folder: Path, folders: list[Path], made: Report | None) -> list[tuple[str, list[list[str]]]]:
    """(heading, lines) of every block of the table, and of an experiment's that lies in the folder."""
    if made is None:
        try:
            made = table(folders)
        except ValueError as error:
            return [(str(error), [])]
    own = [(made.header if i == 0 else "", block.lines) for i, block in enumerate(made.blocks())]
    own += [("\n".join(["Remarks", *remarks]), [])] if (remarks := made.remarks()) else []
    saved = sorted(folder.glob("experiment*.csv"), key=lambda path: path.stem.endswith("tuning"))
    return own + [(f"{path.stem}.csv", _csv(path)) for path in saved]


def _csv(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    kept = [i for i, _ in enumerate(lines[0]) if any(line[i] for line in lines[1:])] if lines else []
    return [[_digits(line[i]) for i in kept] for line in lines]


def _digits(word: str) -> str:
    try:
        return f"{float(word):.5g}" if "." in word else word
    except ValueError:
        return word


# ---- what is drawn


def data(folder: Path, runs: list[Run]) -> dict:
    """What the page's script draws: runs, groups, measures over epochs, and results over numbers."""
    keys = varying(runs)
    groups = sorted(group(runs, keys).values(), key=lambda members: [order(members[0].config.get(k)) for k in keys])
    of = {run.folder: number for number, members in enumerate(groups) for run in members}
    records = {run.folder: _history(run.folder) for run in runs}
    names = dict.fromkeys(key for lines in records.values() for line in lines for key in line)
    measures = [name for name in names if name not in SKIP and not name.startswith("images_")]
    measures.sort(key=lambda name: (name not in FIRST, FIRST.index(name) if name in FIRST else 0))
    percent = {name for name in measures if "accuracy" in name}
    drawn = {
        name: curves([[_points(records[run.folder], name) for run in members] for members in groups], of, runs)
        for name in measures
    }
    return {
        "epochs": shared(drawn),
        "runs": [
            {"name": _named(run, keys), "id": run.folder.name, "group": of[run.folder], "seed": shown(run.seed)}
            for run in runs
        ],
        "groups": [
            {"name": _said(members[0], keys) or folder.name, "color": COLOURS[i % len(COLOURS)], "runs": len(members)}
            for i, members in enumerate(groups)
        ],
        "percent": sorted(percent),
        "measures": drawn,
        "numbers": numbers(runs, keys),
    }


def _history(folder: Path) -> list[dict]:
    try:
        return history(folder)
    except ValueError:
        return []


def _points(lines: list[dict], name: str) -> list[list[float]]:
    found = [(line.get("epoch", line.get("step")), line[name]) for line in lines if _number(line.get(name))]
    return [[x for x, _ in found], [_round(y) for _, y in found]]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def curves(by_group: list[list[list[list[float]]]], of: dict[Path, int], runs: list[Run]) -> dict:
    """Every run's points, and for every group the mean with its 95 % interval where two runs or more have a point."""
    found, left = {"runs": [], "bands": []}, [iter(members) for members in by_group]
    found["runs"] = [next(left[of[run.folder]]) for run in runs]
    for members in by_group:
        at: dict[float, list[float]] = {}
        for xs, ys in members:
            for x, y in zip(xs, ys, strict=True):
                at.setdefault(x, []).append(y)
        several = [(x, estimate(values)) for x, values in sorted(at.items()) if len(values) > 1]
        band = [[x for x, _ in several], [_round(one.mean) for _, one in several]]
        found["bands"].append([*band, [_round(one.half) for _, one in several]])
    return found


def shared(drawn: dict[str, dict]) -> list[list[float]]:
    """The different lists of epochs, each once; what is drawn has their numbers instead."""
    known: dict[tuple, int] = {}
    for measure in drawn.values():
        for one in (*measure["runs"], *measure["bands"]):
            one[0] = known.setdefault(tuple(one[0]), len(known))
    return [list(xs) for xs in known]


def numbers(runs: list[Run], keys: list[str]) -> dict:
    """Of the keys that vary and are numbers: their values, and the results at the last epoch, run by run."""
    swept = [key for key in keys if all(_number(run.config.get(key)) for run in runs)]
    last = [run.result.get("last") or {} for run in runs]
    names = dict.fromkeys(name for line in last for name in line if name.startswith(("val_", "test_", "train_")))
    values = {name: [line[name] if _number(line.get(name)) else None for line in last] for name in names}
    values = {name: found for name, found in values.items() if any(value is not None for value in found)}
    first = sorted(values, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    return {"keys": {key: [run.config[key] for run in runs] for key in swept}, "results": {n: values[n] for n in first}}


def _said(run: Run, keys: list[str]) -> str:
    return " ".join(f"{key}={shown(run.config.get(key, ABSENT))}" for key in keys)


def _named(run: Run, keys: list[str]) -> str:
    return f"{_said(run, keys)} seed={shown(run.seed)}".strip()


def plots(content: dict) -> tuple[str, str]:
    """Bokeh's script and elements: empty plots by name, which the page's script fills."""
    from bokeh.embed import components
    from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter
    from bokeh.plotting import figure

    made = {}
    empty = {"xs": [], "ys": [], "color": [], "name": [], "alpha": []}
    common = {"height": 420, "sizing_mode": "stretch_width", "tools": "pan,wheel_zoom,box_zoom,reset,save"}
    common |= {"background_fill_color": None, "border_fill_color": None, "toolbar_location": "above"}

    def plain(plot):
        for axis in plot.axis:
            axis.axis_label_text_color = axis.major_label_text_color = axis.axis_line_color = "#888888"
            axis.major_tick_line_color = axis.minor_tick_line_color = "#888888"
            axis.axis_label_text_font_style = "normal"
        for grid in plot.grid:
            grid.grid_line_color, grid.grid_line_alpha = "#888888", 0.25
        plot.outline_line_color = None
        return plot

    for x in ("linear", "log"):
        for y in ("linear", "log"):
            # each with data of its own: Bokeh trips over new data of a plot that is not shown
            sources = {of: ColumnDataSource(dict(empty), name=f"{of} {x} {y}") for of in ("lines", "bands", "means")}
            plot = figure(name=f"curves {x} {y}", x_axis_type=x, y_axis_type=y, x_axis_label="epoch", **common)
            plot.patches("xs", "ys", source=sources["bands"], fill_color="color", fill_alpha=0.18, line_alpha=0)
            lines = plot.multi_line("xs", "ys", source=sources["lines"], color="color", alpha="alpha", line_width=1.2)
            plot.multi_line("xs", "ys", source=sources["means"], color="color", line_width=2.5)
            tips = [("", "@name"), ("", "$data_x{0.[0]}: $data_y{0.[0000]}")]
            plot.add_tools(HoverTool(renderers=[lines], tooltips=tips, line_policy="nearest"))
            plot.visible = (x, y) == ("linear", "linear")
            made[plot.name] = plain(plot)
    if content["numbers"]["keys"] and content["numbers"]["results"]:
        for x in ("linear", "log"):
            dots = ColumnDataSource({"x": [], "y": [], "color": [], "name": []}, name=f"dots {x}")
            plot = figure(name=f"plot of dots {x}", x_axis_type=x, **common)
            marks = plot.scatter("x", "y", source=dots, color="color", size=9, alpha=0.75)
            plot.add_tools(HoverTool(renderers=[marks], tooltips=[("", "@name"), ("", "@x: @y{0.[0000]}")]))
            plot.visible = x == "linear"
            made[plot.name] = plain(plot)
        if len(content["numbers"]["keys"]) > 1:
            ways = ColumnDataSource(dict(empty), name="ways")
            plot = figure(name="parallel", x_range=(-0.2, len(content["numbers"]["keys"]) + 0.2), **common)
            lines = plot.multi_line("xs", "ys", source=ways, color="color", alpha="alpha", line_width=1.8)
            plot.add_tools(HoverTool(renderers=[lines], tooltips=[("", "@name")]))
            plot.xaxis.ticker = list(range(len(content["numbers"]["keys"]) + 1))
            plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
            made[plot.name] = plain(plot)
    script, elements = components(made)
    return script, {name: element for name, element in elements.items()}


# ---- the page


def page(folder: Path, runs: list[Run], damaged: list[str], parts: list, content: dict) -> str:
    from bokeh.resources import INLINE

    script, elements = plots(content)
    of = {kind: [e for n, e in elements.items() if n.split()[0] == kind] for kind in ("curves", "plot", "parallel")}
    done = sum(bool(run.result) for run in runs)
    failed = [(run, run.missing) for run in runs if run.missing and run.missing.startswith("failed")]
    facts = [f"{len(runs)} runs", f"{done} done"] + ([f"{len(failed)} failed"] if failed else [])
    facts.append(f"{len(runs) - done - len(failed)} not finished" if len(runs) > done + len(failed) else "")
    facts.append(f"written {datetime.now():%Y-%m-%d %H:%M}")
    body = [f"<h1>{_text(folder.name)}</h1>", f"<p class=quiet>{', '.join(filter(None, facts))}</p>"]
    body += [part for heading, lines in parts for part in _block(heading, lines)]
    body += ["<h2>Curves</h2>", CONTROLS, *of["curves"], "<div id=legend></div>"]
    if of["plot"]:
        body += ["<h2>Results over what was swept</h2>", SWEPT, *of["plot"]]
    if of["parallel"]:
        body += ["<p class=quiet>Each line is a run; axes go from the smallest value to the largest.</p>"]
        body += of["parallel"]
    body += ["<h2>Runs</h2>", *_runs(folder, runs, content)]
    if failed or damaged:
        body.append("<h2>What failed</h2>")
        body += [f"<p><code>{_text(run.folder.name)}</code> {_text(why)}</p>" for run, why in failed]
        body += [f"<p>{_text(line)}</p>" for line in damaged]
    style, own = (HERE / f"webpage.{kind}" for kind in ("css", "js"))
    packed = json.dumps(content, separators=(",", ":")).replace("</", "<\\/")
    name = f"<title>{_text(folder.name)}</title>"
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>{name}"
    core = "\n".join(f"<script>{code}</script>" for code in INLINE.js_raw[:1])
    return "\n".join(
        [
            f"<!doctype html><html lang=en><head>{head}<style>{style.read_text()}</style>{core}</head><body>",
            *body,
            f"<script id=data type=application/json>{packed}</script>",
            script,
            f"<script>{own.read_text()}</script></body></html>\n",
        ]
    )


CONTROLS = """<p class=controls><label>measure <select id=measure></select></label>
<label><input type=checkbox id=logx> logarithmic epochs</label>
<label><input type=checkbox id=logy> logarithmic values</label>
<label><input type=checkbox id=each checked> every run</label></p>"""
SWEPT = """<p class=controls><label>setting <select id=key></select></label>
<label>result <select id=result></select></label>
<label><input type=checkbox id=logk> logarithmic</label></p>"""


def _text(value: Any) -> str:
    return html.escape(str(value))


def _block(heading: str, lines: list[list[str]]) -> Iterable[str]:
    if heading:
        first, *rest = heading.splitlines()
        yield f"<p class=head>{_text(first)}</p>"
        if rest:
            yield f"<details><summary>more</summary><p>{'<br>'.join(map(_text, rest))}</p></details>"
    if lines:
        yield _table(lines)


def _table(lines: list[list[str]], raw: bool = False) -> str:
    cell = (lambda value: value) if raw else _text
    head = "".join(f"<th>{_text(name)}" for name in lines[0])
    rows = "".join(f"<tr>{''.join(f'<td>{cell(value)}' for value in line)}" for line in lines[1:])
    return f"<div class=wide><table class=sortable><thead><tr>{head}<tbody>{rows}</table></div>"


def _runs(folder: Path, runs: list[Run], content: dict) -> Iterable[str]:
    """A line for each, with links; what all have in common once, and below it what each differs in."""
    shared = {k: v for k, v in runs[0].config.items() if all(r.config.get(k, ABSENT) == v for r in runs)}
    lines = [["run", "what varies", "seed", "state", "seconds", "to look at"]]
    for run, about in zip(runs, content["runs"], strict=True):
        place = run.folder.relative_to(folder) if run.folder.is_relative_to(folder) else run.folder
        state = "done" if run.result else (run.missing or "not finished").splitlines()[0]
        pictures = sorted(path.name for path in run.folder.glob("*.png"))
        links = [f"<a href='{_text(place)}/{_text(name)}'>{_text(name.removesuffix('.png'))}</a>" for name in pictures]
        own = {k: v for k, v in run.config.items() if k not in shared}
        differs = "<br>".join(_text(f"{key}: {shown(value)}") for key, value in own.items())
        words = _text(content["groups"][about["group"]]["name"])
        differs = f"<details><summary>{words}</summary>{differs or 'nothing'}</details>"
        took = run.result.get("seconds", "")
        where = f"<a href='{_text(place)}/'><code>{_text(run.folder.name)}</code></a>"
        lines.append([where, differs, about["seed"], _text(state), str(took), " ".join(links)])
    yield _table(lines, raw=True)
    common = "\n".join(f"{key}: {shown(value)}" for key, value in sorted(shared.items()))
    yield f"<details><summary>what all runs have in common</summary><pre>{_text(common)}</pre></details>"
    typed = read_yaml(runs[0].folder / ".hydra" / "overrides.yaml") or []
    yield f"<p class=quiet>The first: <code>python -m runner {_text(' '.join(map(str, typed)))}</code></p>"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m runner.report", description="Write report.html: a folder of runs to look at, in one file."
    )
    parser.add_argument("folder", type=Path, help="outputs/NAME")
    parser.error = lambda message: parser.exit(2, f"{message}\n")
    given = parser.parse_args(arguments)
    if not available():
        parser.error('it is drawn by Bokeh: pip install -e ".[report]"')
    try:
        with unbreakable():
            print(write(given.folder))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0
