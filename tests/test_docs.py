"""What the documents say of the code is true."""

import itertools
import re

import pytest

from runner.command.listing import GROUPS, conf_dir, options, title
from runner.sharpness.asam import ASAM
from scripts import packing, seams
from scripts.tables import SEAMS, alone, readme
from tests.conftest import ROOT


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
    for document in ("README.md", "DESIGN.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for name in re.findall(r"`((?:runner|conf|scripts|tests)/[\w./-]+\.(?:py|yaml|md))`", text):
            assert (ROOT / name).exists(), f"{document} names {name}"
