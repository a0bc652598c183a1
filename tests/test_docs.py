"""What the documents say of the code is true."""

import re

from runner.command.listing import GROUPS, conf_dir, options, title
from runner.sharpness.asam import ASAM
from scripts import packing
from scripts.tables import alone, readme
from tests.conftest import ROOT


def test_conf_readme_is_fresh():
    path = conf_dir() / "README.md"
    assert path.read_text(encoding="utf-8") == readme(conf_dir()), "stale: run `make docs`"


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
