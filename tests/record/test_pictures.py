"""The pictures of a run: where things stand in them, and that they can be drawn again from the run's folder."""

import json

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runner.engine.run import run
from runner.record import curves, layers, pictures
from tests.tiny import SMALL, compose

WORDS = {
    "classes": ["dataset=digits"],
    "quantized": ["quantization=lsq", "quantization.bits=4"],
    "federated": ["federated=fedavg", "federated.rounds=2", "federated.clients=3", "federated.partition=dirichlet"],
    "regression": ["dataset=diabetes", "loss=cs_ib"],
    "several labels": ["dataset=multi_digits", "loss=asl_multilabel"],
}
NAMES = {
    "classes": {"curves", "classes", "confusion", "reliability"},
    "quantized": {"curves", "classes", "confusion", "reliability", "quantization"},
    "federated": {"curves", "classes", "confusion", "reliability", "partition"},
    "regression": {"curves"},
    "several labels": {"curves"},
}


@pytest.mark.parametrize("kind", WORDS)
def test_every_picture_of_a_run_is_drawn_again_from_its_folder(kind, tmp_path, capsys):
    config = compose(*SMALL, *WORDS[kind], f"outputs_dir={tmp_path}")
    run(config, [], say=lambda *_: None)
    (folder,) = (path.parent for path in tmp_path.glob("runs/*/result.json"))
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert {name.removesuffix(".png") for name in before} == NAMES[kind]
    pictures.main([str(folder)])
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == before
    for form, start in (("pdf", b"%PDF"), ("svg", b"<?xml")):
        pictures.main([str(folder.parent), "--format", form])
        drawn = {path.stem: path.read_bytes() for path in folder.glob(f"*.{form}")}
        assert set(drawn) == NAMES[kind]
        assert all(content.startswith(start) for content in drawn.values())
    assert "curves.svg" in capsys.readouterr().out
    if "reliability" in NAMES[kind]:  # of a loss without probabilities
        result = json.loads((folder / "result.json").read_text()) | {"reliability": {"bins": None, "scaled": None}}
        assert set(pictures.of(result)) == {"classes.png", "confusion.png"}


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        pictures.main([str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def panels(history, monkeypatch) -> list:
    """The axes of curves.png, drawn."""
    figures = []
    monkeypatch.setattr(curves, "write", lambda figure, path: figures.append(figure))
    curves.draw(history, None)
    figures[0].canvas.draw()
    return figures[0].axes


LINE = {
    "train_loss": 1.23456789, "train_accuracy": 0.99, "lr": 0.1,
    **{f"{split}_{key}": value for split in ("val", "test") for key, value in (("nll", 1.0), ("accuracy", 1.0))},
}  # fmt: skip
ERRORS = {f"{split}_{key}": 0.123456 for split in ("train", "val", "test") for key in ("rmse", "mae")}


@pytest.mark.parametrize("line", [LINE, {"train_loss": 0.5, "lr": 0.1, **ERRORS}])
def test_legends_stand_on_no_point(line, monkeypatch):
    axes = panels([{**line, "epoch": epoch, "step": epoch} for epoch in (1, 2, 3)], monkeypatch)
    legends = [one.get_legend() for one in axes[:2]]
    assert all(legends)
    boxes = [legend.get_window_extent() for legend in legends]
    for box in boxes:
        assert not any(box.overlaps(one.get_window_extent()) for one in axes)
    assert not boxes[0].overlaps(boxes[1])
    for one, box in zip(axes, boxes, strict=False):
        assert not box.overlaps(one._left_title.get_window_extent())


def test_axes_of_per_cent_end_at_0_and_100(monkeypatch):
    for accuracy in ((0.98, 1.0), (0.0, 0.01), (0.0, 1.0)):
        lines = [{**LINE, "test_accuracy": value, "epoch": i, "step": i} for i, value in enumerate(accuracy, 1)]
        low, high = panels(lines, monkeypatch)[1].get_ylim()
        assert low >= 0 and high <= 100 and (low == 0 or high == 100)
    assert curves.within(40.0, 60.0, percent=True) == pytest.approx((38.4, 61.6))
    assert curves.within(5.0, 5.0, percent=False)[0] < 5.0 < curves.within(5.0, 5.0, percent=False)[1]


def test_rounds_are_called_rounds(monkeypatch):
    lines = [{**LINE, "epoch": epoch, "step": epoch} for epoch in (1, 2)]
    assert {axes.get_xlabel() for axes in panels(lines, monkeypatch)} == {"epoch"}
    of_clients = [line | {"bytes_up": 10} for line in lines]
    assert {axes.get_xlabel() for axes in panels(of_clients, monkeypatch)} == {"round"}


@pytest.mark.parametrize("errors", [[2e-3, 8e-4], [1e-3, 1e-3], [0.5, None], [None, None]])
def test_the_ticks_of_a_quantized_run(errors, monkeypatch):
    """Whole bits, and whole powers of ten at both ends."""
    figures = []
    monkeypatch.setattr(curves, "write", lambda figure, path: figures.append(figure))
    layers.draw([{"name": f"layer {i}", "bits": 4.05, "error": error} for i, error in enumerate(errors)], None)
    figures[0].canvas.draw()
    left, right = figures[0].axes
    assert all(tick == int(tick) for tick in left.get_xticks())
    if any(errors):
        assert [text.get_text() for text in right.get_xticklabels(minor=True)] == []
        low, high = right.get_xlim()
        ends = [one for one in right.get_xticks() if low <= one <= high]
        assert ends[0] == pytest.approx(low) and ends[-1] == pytest.approx(high)


def test_a_picture_without_axes_is_a_figure():
    figure = Figure()
    FigureCanvasAgg(figure)
    panel = pictures.Panel(figure, (0, 0, 1, 1), (0, 1), (0, 1))
    panel.line([0.5], [0.5], marker="o", hollow=True)
    assert figure.get_children()[-1].get_markerfacecolor() == "white"
