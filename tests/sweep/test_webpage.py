"""report.html: its numbers, and what it does in a browser."""

import html
import json
import re
import shutil
import subprocess

import pytest

from runner.record.files import write_json
from runner.sweep import webpage
from runner.sweep.statistics import estimate

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# clicks that a person would make, and what is there then
CLICKS = """<pre id=found></pre><script>
function look() {
  if (document.body.dataset.ready !== "yes") return setTimeout(look, 20);
  const said = {opened: performance.now()}, runs = [...document.querySelectorAll("table.sortable")].at(-1);
  const column = (k) => [...runs.tBodies[0].rows].map((row) => row.cells[k].innerText.trim());
  const seeds = [...runs.tHead.rows[0].cells].findIndex((cell) => cell.innerText === "seed");
  runs.tHead.rows[0].cells[seeds].click(); said.down = column(seeds);
  runs.tHead.rows[0].cells[seeds].click(); said.up = column(seeds);
  said.lines = source("lines linear linear").data.xs.length;
  said.means = source("means linear linear").data.ys.map((y) => [...y]);
  document.querySelector("#legend input").click();
  said.hidden = source("lines linear linear").data.xs.length;
  element("logy").checked = true; element("logy").onchange();
  said.shown = ["linear", "log"].map((y) => model(`curves linear ${y}`).visible);
  if (element("key")) said.dots = [[...source("dots linear").data.x], [...source("dots linear").data.y]];
  document.getElementById("found").textContent = JSON.stringify(said);
}
look();
</script></body>"""


@pytest.fixture
def runs(make):
    """Two learning rates by two momenta by three seeds, one of which failed."""
    made = []
    for lr in (0.01, 0.1):
        for momentum in (0.5, 0.9):
            for seed in range(3):
                accuracy = 0.5 + lr + momentum / 10 + seed / 1000
                node = {"optim.lr": lr, "optim.momentum": momentum}
                typed = [f"optim.lr={lr}", f"optim.momentum={momentum}", f"seed={seed}"]
                folder = make(seed, accuracy, nodes=node, typed=typed)
                lines = [
                    {"step": 10 * e, "epoch": e, "train_loss": 1 / e, "test_accuracy": accuracy - 0.1 / e}
                    for e in range(1, 5)
                ]
                (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
                made.append(folder)
    (made[-1] / "result.json").unlink()
    write_json(made[-1] / "failed.json", {"type": "NonFinite", "message": "loss is nan <b>", "step": 7})
    return made


def content(path) -> dict:
    found = re.search(r"<script id=data type=application/json>(.*?)</script>", path.read_text(), re.S)
    return json.loads(found[1])


def in_browser(page, tmp_path) -> dict:
    if BROWSER is None:
        pytest.skip("no chromium here: what report.html does in a browser was not tried")
    own = tmp_path / "clicked.html"
    own.write_text(page.read_text().replace("</body>", CLICKS))
    words = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    words += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", own.as_uri()]
    result = subprocess.run(words, capture_output=True, text=True, timeout=240)
    errors = [line for line in result.stderr.splitlines() if re.search(r"CONSOLE.*(Uncaught|Error)", line)]
    assert not errors, errors
    found = re.search(r'<pre id="found">(.*?)</pre>', result.stdout, re.S)
    assert found and found[1], result.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def test_the_numbers_are_those_of_the_runs(runs, tmp_path):
    found = content(webpage.write(runs[0].parent))
    assert [run["id"] for run in found["runs"]] == [folder.name for folder in runs]
    assert [group["runs"] for group in found["groups"]] == [3, 3, 3, 3]
    for folder, points in zip(runs, found["measures"]["test_accuracy"]["runs"], strict=True):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert found["epochs"][points[0]] == [1, 2, 3, 4]
        assert points[1] == pytest.approx([line["test_accuracy"] for line in lines], rel=1e-4)
    epochs, means, halves = found["measures"]["test_accuracy"]["bands"][0]
    first = [found["measures"]["test_accuracy"]["runs"][k][1] for k in range(3)]
    for k in range(4):
        expected = estimate([values[k] for values in first])
        assert (means[k], halves[k]) == pytest.approx((expected.mean, expected.half), rel=1e-3)
    assert found["numbers"]["keys"] == {
        "optim.lr": [0.01] * 6 + [0.1] * 6,
        "optim.momentum": ([0.5] * 3 + [0.9] * 3) * 2,
    }
    results = found["numbers"]["results"]["test_accuracy"]
    last = [json.loads((f / "result.json").read_text())["last"]["test_accuracy"] for f in runs[:-1]]
    assert results[:-1] == last and results[-1] is None


def test_the_page_is_whole_and_says_what_failed(runs):
    page = webpage.write(runs[0].parent).read_text()
    assert "12 runs, 11 done, 1 failed" in page
    assert "failed at step 7: NonFinite: loss is nan &lt;b&gt;" in page and "nan <b>" not in page
    around = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.S)
    assert not re.search(r"(src|href)=['\"]?https?://", around) and "src=" not in around  # nothing is fetched
    size = len(page) - len(re.search(r"<script id=data[^>]*>(.*?)</script>", page, re.S)[1])
    assert size < 2 * 2**20


def test_it_opens_sorts_and_hides_in_a_browser(runs, tmp_path):
    found = in_browser(webpage.write(runs[0].parent), tmp_path)
    assert found["down"] == sorted(found["down"], reverse=True) and found["up"] == sorted(found["up"])
    assert (found["lines"], found["hidden"]) == (12, 9)
    assert found["shown"] == [False, True]
    assert len(found["means"]) == 4 and found["means"][0][0] == pytest.approx(100 * (0.5 + 0.01 + 0.05 + 0.001 - 0.1))
    assert len(found["dots"][0]) == 11


def test_a_folder_of_runs_without_numbers_has_no_plot_over_them(make, tmp_path):
    for seed in range(2):
        folder = make(seed, 0.9)
        (folder / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "test_accuracy": 0.9}\n')
    page = webpage.write(folder.parent)
    assert "Results over what was swept" not in page.read_text()
    found = in_browser(page, tmp_path)
    assert found["lines"] == 2 and "dots" not in found


def test_what_cannot_be_drawn_is_one_line(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        webpage.main([str(tmp_path)])
    assert stop.value.code == 2 and capsys.readouterr().err == f"no runs in {tmp_path}\n"
    monkeypatch.setattr(webpage, "available", lambda: False)
    with pytest.raises(SystemExit):
        webpage.main([str(tmp_path)])
    assert 'pip install -e ".[report]"' in capsys.readouterr().err


def test_an_experiment_writes_it_at_its_end(runs, monkeypatch):
    from runner.sweep.table import table

    made = table(runs[:-1])
    line = webpage.offered(runs[0].parent, made, runs)
    assert line.startswith("to look at it: ") and line.endswith("report.html")
    assert made.header.splitlines()[0] in html.unescape((runs[0].parent / "report.html").read_text())
    monkeypatch.setattr(webpage, "available", lambda: False)
    assert "python -m runner.report" in webpage.offered(runs[0].parent, made, runs)
