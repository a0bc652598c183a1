"""The command as its user meets it: mistakes, lists, help, other folders."""

import copy
import subprocess
import sys

import pytest

from runner.command.config import check_all
from runner.command.listing import GROUPS, conf_dir, options
from runner.core.mistake import ConfigError
from tests.conftest import ROOT
from tests.tiny import command, compose

TINY = ["dataset.subset=100", "train.steps=2", "train.batch_size=20"]


def one_line(result) -> str:
    """The single line of a refused command; nothing on stdout, exit status 2."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["loss=pol"], "no loss named 'pol'. Did you mean 'poly'?"),
        (["optimizer=sdg"], "no optim named 'sdg'. Did you mean 'sgd'?"),
        (["augment=[crop_flip,cutot]"], "no augment named 'cutot'. Did you mean 'cutout'?"),
        (["lss=poly"], "no key or group 'lss'. Did you mean 'loss'?"),
        (["train.epoch=3"], "no key 'train.epoch'. Did you mean 'train.epochs'?"),
        (["sharpness.rho=0.1"], "'sharpness.rho' belongs to sharpness="),
        (["optim.lrr=1"], "no key 'optim.lrr'. Did you mean 'optim.lr'?"),
        (["+optim.lrr=1"], "no key 'optim.lrr'. Did you mean 'optim.lr'?"),
        (["hook.ema.decay=0.9"], "'hook.ema.decay' belongs to hook=ema, which this run does not select"),
        (["hook=ema", "hook.ema.dcay=0.9"], "no key 'hook.ema.dcay'. Did you mean 'hook.ema.decay'?"),
        (["optim.lr=fast"], "optim.lr=fast: must be a number at least 0"),
        (["optim.lr=-1"], "optim.lr=-1: must be a number at least 0"),
        (["train.epochs=2.5"], "train.epochs=2.5: must be an integer at least 1"),
        (["train.precision=fp8"], "train.precision=fp8: must be one of auto, bf16, fp16, fp32"),
        (["seed=-1"], "seed=-1: must be an integer at least 0"),
        (["name=a/b"], "name=a/b: it is one folder"),
        (["loss=ce", "loss"], "'loss' is not an override: write key=value"),
        (["-m", "loss=ce,poly", "optim.lr=0.1,fast"], "optim.lr=fast: must be a number at least 0"),
        (["-m", "sharpness=sam,none", "sharpness.rho=0.1"], "which this run does not select; it has sharpness=none"),
        (["-m", "hook=ema,clip", "hook.ema.decay=0.9"], "'hook.ema.decay' belongs to hook=ema, which this run does"),
        (["-m", "loss=ce,pol"], "no loss named 'pol'. Did you mean 'poly'?"),
        (["optim.lr=${foo}"], "optim.lr: Interpolation key 'foo' not found"),
        (["optim=sam", "optim.rho=0.1"], "no key 'optim.rho'. Did you mean 'sharpness.rho'?"),
        (["loss="], "loss= names no option. There are: absolute, adaface"),
        (["train=foo"], "train=foo: it has keys of its own"),
        (["device=tpu"], "device=tpu: must be one of auto, cpu"),
        (["device=mps"], "device=mps: Apple's GPUs have no float64"),
        (["dataset.subset=9999"], "dataset.subset=9999 is more than the 1438 training samples"),
        (["model=lenet"], "lenet needs images of at least 12 x 12 pixels, got 8 x 8"),
        (["model=timm"], "set model.name="),
        (["--lits"], "no flag '--lits'. Did you mean '--list'?"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(words, expected, tmp_path):
    line = one_line(command(*words, cwd=tmp_path))
    assert expected in line
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_over_options_takes_a_key_that_all_of_them_have():
    """And that the option of config.yaml, to which Hydra would apply what is not swept, has not."""
    from runner.command.launchers import with_options

    given = ["-m", "sharpness=sam,asam", "sharpness.rho=5e-2", "sharpness.eta=0.1,0.2", "seed=1", "+loss.x=1"]
    assert with_options(given) == [*given[:2], "sharpness.rho=choice(5e-2)", *given[3:]]
    for words in (given[1:], ["-m", *given[2:]]):  # no sweep, and no sweep over options
        assert with_options(words) == words


SINGLE_BAD = {bool: "perhaps", int: "many", float: "fast", list: "alone"}


def nodes():
    for group in GROUPS:
        for option in options(group, [conf_dir()]):
            if option != "none":
                yield group, option


@pytest.mark.parametrize(("group", "option"), list(nodes()))
def test_every_key_of_every_option_refuses_a_wrong_type_and_a_wrong_name(group, option):
    choice = [f"{group}={option}"] + (["model.name=resnet18"] if option == "timm" else [])
    choice += ["dataset.id=a/b"] if option == "hf" else []
    config = compose(*choice)
    node = config[group][option] if group in ("transform", "augment", "hook", "logger") else config[group]
    where = f"{group}.{option}" if group in ("transform", "augment", "hook", "logger") else group
    with pytest.raises(ConfigError, match=f"no key '{where}.qqq'"):
        compose(*choice, f"+{where}.qqq=1")
    for key, value in node.items():
        if key == "_target_":
            continue
        nested = isinstance(value, dict) or value is None and key == "args"
        bad = 5 if nested else SINGLE_BAD.get(type(value), {"a": 1})  # null may be anything but a mapping
        wrong = copy.deepcopy(config)
        (wrong[group][option] if group in ("transform", "augment", "hook", "logger") else wrong[group])[key] = bad
        with pytest.raises(ConfigError, match=f"{where}.{key}"):
            check_all(wrong)


def test_what_the_words_mean():
    assert compose("optim=sam")["sharpness"]["_target_"].endswith("SAM")
    assert compose("optim=sam", "sharpness.rho=0.1")["sharpness"]["rho"] == 0.1
    assert compose("sharpness=none", "optim=sam")["sharpness"]["_target_"].endswith("Plain")
    assert compose("optim=sam", "sharpness=none")["sharpness"]["_target_"].endswith("Plain")
    both = compose("optim=adamw", "sharpness=sam")
    assert both["optim"]["decoupled"] is True
    assert both["sharpness"]["rho"] == 0.05
    assert list(compose("augment=[crop_flip,cutout]")["augment"]) == ["crop_flip", "cutout"]
    assert list(compose("hook=ema")["hook"]) == ["ema"]


def test_list_names_every_option_and_imports_nothing_heavy():
    code = (
        "import sys; from runner.__main__ import main; main(['--list']); "
        "assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)"
    )
    listed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for group, option in nodes():
        assert f"\n  {option} " in listed, (group, option)


def test_list_filters():
    def out(*words):
        return command("--list", *words, cwd=ROOT).stdout

    assert "sharpness=" not in out("loss")
    assert out("loss", "poly").count("\n  ") >= 1
    assert "focal" in out("loss", "lin et al")
    assert "sam" in out("2010.01412")
    assert "nothing matches" in out("loss", "qqq")


def test_help_names_every_group():
    text = command("--help", cwd=ROOT).stdout
    for group in GROUPS:
        assert f"\n  {group} " in text


def test_a_users_own_method_in_another_folder(tmp_path):
    (tmp_path / "mine" / "loss").mkdir(parents=True)
    (tmp_path / "mine" / "loss" / "hinge.yaml").write_text(
        "# Hinge -- somebody, 1995\n_target_: my_losses.Hinge\nmargin: 1.0\n"
    )
    (tmp_path / "my_losses.py").write_text(
        "import torch\n"
        "from runner.loss import Loss\n"
        "class Hinge(Loss):\n"
        "    def __init__(self, margin: float = 1.0):\n"
        "        super().__init__()\n"
        "        self.margin = margin\n"
        "    def forward(self, out, batch):\n"
        "        true = out.logits.gather(-1, batch.y[..., None])\n"
        "        return (self.margin - true + out.logits).clamp(min=0).sum(-1) - self.margin\n"
    )
    words = ["--config-dir", "mine", "loss=hinge", "loss.margin=2", *TINY]
    result = command(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "loss=hinge" in result.stdout
    assert len(list((tmp_path / "outputs" / "runs").glob("*/result.json"))) == 1
    assert "hinge" in command("--config-dir", "mine", "--list", "loss", cwd=tmp_path).stdout
    line = one_line(command("--config-dir", "mine", "loss=hinge", "loss.margn=2", cwd=tmp_path))
    assert "no key 'loss.margn'. Did you mean 'loss.margin'?" in line
    line = one_line(command("--config-dir", "mine", "loss=hing", cwd=tmp_path))
    assert "Did you mean 'hinge'?" in line


def test_a_third_partys_optimizer_by_target(tmp_path):
    (tmp_path / "mine" / "optim").mkdir(parents=True)
    (tmp_path / "mine" / "optim" / "rprop.yaml").write_text("# Rprop -- torch\n_target_: torch.optim.Rprop\nlr: 0.01\n")
    (tmp_path / "mine" / "optim" / "lion.yaml").write_text("# Lion -- timm\n_target_: timm.optim.Lion\nlr: 0.001\n")
    for name in ("rprop", "lion"):
        result = command("--config-dir", "mine", f"optim={name}", "sharpness=sam", *TINY, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    line = one_line(command("--config-dir", "mine", "optim=rprop", "optim.lr=fast", cwd=tmp_path))
    assert "optim.lr=fast" in line
    line = one_line(command("--config-dir", "mine", "optim=rprop", "optim.lr=-1", cwd=tmp_path))
    assert "optim: Invalid learning rate" in line
    assert not (tmp_path / "outputs" / "runs" / "never").exists()


def test_the_flag_for_sweeps_may_stand_anywhere(tmp_path):
    result = command("seed=0", "-m", "train.epoch=1", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("runner: no key 'train.epoch'. Did you mean 'train.epochs'?")
