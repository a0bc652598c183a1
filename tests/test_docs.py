"""What the documents say of the code is true."""

import itertools
import re
import shlex

import pytest

from runner.__main__ import main
from runner.command.listing import GROUPS, conf_dir, options, title
from runner.sharpness.asam import ASAM
from runner.sweep import plan
from scripts import packing, seams
from scripts.tables import SEAMS, alone, readme
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_conf_readme_is_fresh():
    text = (conf_dir() / "README.md").read_text(encoding="utf-8")
    assert text == readme(conf_dir(), tried(text)), "stale: run `make docs`"


def tried(text: str) -> list[str]:
    """The lines about seams and conditions."""
    return text.partition(SEAMS)[2].strip().splitlines()[2:]


@pytest.mark.parametrize("seam", seams.SEAMS)
def test_every_seam_does_under_every_condition_what_is_written(seam):
    lines = tried((conf_dir() / "README.md").read_text(encoding="utf-8"))
    start = next(place for place, line in enumerate(lines) if line.startswith(f"- {seam}: "))
    own = [lines[start], *itertools.takewhile(lambda line: line.startswith("  "), lines[start + 1 :])]
    assert own == seams.row(seam), "stale: run `make docs`"


def test_no_seam_is_left_out():
    lines = tried((conf_dir() / "README.md").read_text(encoding="utf-8"))
    assert [line.split(": ")[0] for line in lines if line[0] == "-"] == [f"- {seam}" for seam in seams.SEAMS]


def test_what_is_not_trained_side_by_side_is_listed(monkeypatch):
    monkeypatch.setattr(packing, "GROUPS", ("sharpness",))
    assert alone(conf_dir())[-1] == "- none."
    monkeypatch.setattr(ASAM, "replicas", False)
    assert alone(conf_dir())[-1] == "- `sharpness=asam`: ASAM does not say that it works on replicas"


def test_every_option_names_its_source():
    for group in GROUPS:
        for name, path in options(group, [conf_dir()]).items():
            what, dashes, source = title(path).partition(" -- ")
            assert what, f"conf/{group}/{name}.yaml"
            assert dashes, f"conf/{group}/{name}.yaml"
            assert source, f"conf/{group}/{name}.yaml"


def test_documents_name_files_that_exist():
    for path in (*PAGES, ROOT / "DESIGN.md"):
        document, text = path.name, path.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:runner|conf|scripts|tests)/[\w./-]+\.(?:py|yaml|md))`", text):
            assert (ROOT / name).exists(), f"{document} names {name}"


def commands() -> list:
    """(page, the words of a `python -m runner ...` in a block of code, the line after it) of all pages."""
    found = []
    for path in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M):
            lines = block.replace("\\\n", " ").splitlines()
            for line, after in zip(lines, [*lines[1:], ""], strict=True):
                command = line.removeprefix("$ ").partition("  #")[0]
                if command.startswith("python -m runner ") or command == "python -m runner":
                    found.append(pytest.param(shlex.split(command)[3:], after, id=f"{path.stem}: {command[17:60]}"))
    return found


@pytest.mark.parametrize("words, after", commands())
def test_commands_of_the_pages_do_what_they_say(words, after, tmp_path, monkeypatch, capsys):
    """A mistake is the line that is shown; a run on the digits is begun, with a step; the rest is planned."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "lines", lambda *_: [])
    if after.startswith("runner: "):
        assert main(words) == 2
        assert capsys.readouterr().err.splitlines()[0] == after
    elif any(word.startswith("checkpoint=") for word in words):  # of the default run
        assert main(["train.steps=1", "outputs_dir=there"]) == 0
        (place,) = tmp_path.glob("there/runs/*/last.pt")
        rest = [word for word in words if not word.startswith("checkpoint=")]
        assert main([*rest, f"checkpoint={place.parent}"]) == 0
    elif "-m" in words or any(word.startswith(("+experiment=", "dataset=")) for word in words):
        assert main([*(word for word in words if not word.startswith("hydra")), "--plan"]) == 0
        assert "nothing is run" in capsys.readouterr().out
    else:
        assert main([*words, "train.steps=1"]) == 0


def test_pages_are_short_and_their_links_lead_somewhere():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    for path in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert link.startswith("http") or (path.parent / link).exists(), f"{path.name}: {link}"
