"""`--list group=option`: every option in full, from its YAML, its signature and its docstring."""

import pytest

from runner.__main__ import main
from runner.command.describe import NODES, describe, node
from runner.command.listing import GROUPS, conf_dir, options, title

EVERY = [(group, option) for group in GROUPS for option in options(group, [conf_dir()])]


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_is_described(group):
    for option, path in options(group, [conf_dir()]).items():
        text = describe(f"{group}={option}", [conf_dir()], width=1000)
        assert f"  {title(path)}" in text
        for key, value in node(path)[0].items():
            where = f"{group}.{option}" if group in ("transform", "augment", "hook", "logger") else group
            assert key == "_target_" or f"\n{where}.{key}=" in text, (option, key)
            if isinstance(value, float):
                assert f"{where}.{key}={value}   " in text or f"{where}.{key}={value}\n" in text, (option, key)


def test_what_it_says():
    text = describe("loss=poly", [conf_dir()], width=1000)
    assert "PolyLoss, Poly-1 cross-entropy -- Leng et al., ICLR 2022, arXiv:2204.12511" in text
    assert "_target_: runner.loss.poly.Poly" in text
    assert "loss.epsilon=2.0   a number at least -1\n    at least -1, as in the paper. It has to be tuned" in text
    assert "loss.label_smoothing=0.0   a number in [0, 1)\n" in text
    assert "also sets sharpness=sam" in describe("optim=sam", [conf_dir()])
    text = describe("federated=scaffold", [conf_dir()], width=1000)
    assert "federated.weighting=uniform   one of samples, uniform" in text  # its own default, not the group's
    assert "federated.rounds=10   an integer at least 1" in text
    assert "Acts where federated.partition is labels." in text
    for name, schema in NODES.items():
        text = describe(name, [conf_dir()])
        assert all(f"\n{name}.{key}=" in text for key in schema.__dataclass_fields__)


def test_the_command(capsys, tmp_path):
    for words in (["--list", "loss=poly"], ["--help", "loss=poly"], ["loss=poly", "--list"]):
        assert main(words) == 0
        assert capsys.readouterr().out.startswith("loss=poly\n  PolyLoss")
    assert main(["--list", "loss=pol"]) == 2
    assert capsys.readouterr().err == "runner: no loss named 'pol'. Did you mean 'poly'? See --list loss\n"
    assert main(["--list", "los=poly"]) == 2
    assert "no group 'los'. Did you mean 'loss'?" in capsys.readouterr().err
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "own.yaml").write_text("# Mine -- me, 2026\n_target_: runner.loss.poly.Poly\nepsilon: 3.5\n")
    assert main(["--config-dir", str(tmp_path), "--list", "loss=own"]) == 0
    out = capsys.readouterr().out
    assert "Mine -- me, 2026" in out and "loss.epsilon=3.5   a number at least -1" in out
