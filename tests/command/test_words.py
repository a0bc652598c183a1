"""What a command refuses, in one line and before anything is composed, loaded or written; in this process."""

import pytest
from omegaconf import OmegaConf

from runner.__main__ import main
from runner.command.compose import compose as product
from runner.command.listing import GROUPS
from runner.core.mistake import ConfigError
from runner.record.identity import identity
from tests.tiny import compose

LONG = "9" * 5000


@pytest.fixture
def said(capsys, tmp_path, monkeypatch):
    """What a refused command says: its one line, with status 2, nothing on stdout and nothing written."""
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> str:
        status = main(list(words))
        out, err = capsys.readouterr()
        assert (status, out) == (2, ""), err
        (line,) = err.splitlines()
        assert line.startswith("runner: ") and len(line) < 1000
        return line.removeprefix("runner: ")

    return command


@pytest.mark.parametrize(
    "group", [group for group in GROUPS if group not in ("transform", "augment", "hook", "logger")]
)
def test_a_group_of_one_takes_one_option(group, said):
    for words in ([f"{group}=[a,b]"], [f"{group}=[a]"], [f"{group}=[]"], ["-m", f"{group}=[a,b],c"]):
        assert f"-m {group}=a,b" in said(*words)
    for make in (compose, product):
        with pytest.raises(ConfigError, match="takes one option"):
            make(f"{group}=[a,b]")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("model.hidden={}", "model.hidden={}: what stands there is of another kind, a list or a mapping"),
        ("loss=ce,poly", "several values are a sweep, which needs -m"),
        ("hook=ema,clip", "which needs -m; for all of them in one run: hook=[ema,clip]"),
        ("model.hidden=8,8", "which needs -m; for one value that is a list: model.hidden=[8,8]"),
        ("seed=range(3)", "which needs -m"),
        ("loss=null", "loss=null: must be the name of an option; see --list loss"),
        ("loss=3", "loss=3: must be the name of an option"),
        ("hook=null", "hook=null: must be the name of an option; for none of them hook=none"),
        ("hook=[ema,null]", "must be the name of an option"),
        ("hook=[ema,clip,ema]", "ema stands there twice; a run has an option once"),
        ("hydra/launcher=null", "hydra/launcher=null: must be the name of an option"),
        ("loss._target_=null", "loss._target_=null: must be a dotted path such as package.module.Class"),
        ("loss._target_=5", "loss._target_=5: must be a dotted path"),
        ("loss._target_=a..b", "loss._target_=a..b: must be a dotted path"),
        ("loss._target_=runner.loss.ce.Foo", "no 'Foo' in 'runner.loss.ce'."),
        ("loss._target_=runner.loss.ce.__doc__", "must be a class, and this is a str"),
        ("loss._target_=runner.model.mlp.Mlp", "loss: Mlp is no runner.loss.Loss, which every option of 'loss' is"),
        ("optim._target_=runner.loss.ce.CrossEntropy", "optim: CrossEntropy is no torch.optim.Optimizer"),
        (f"seed={2**63}", "must be an integer at least 0 and below 2^63"),
        (f"seed={LONG}", "that number has too many digits"),
        (f"train.steps={LONG}", "that number has too many digits"),
        (f"train.steps={10**25}", "must be an integer at least 1 and below 2^63"),
        ("train.steps=1e25", "train.steps=1e+25: must be an integer at least 1"),
        ("train.steps=1.5", "train.steps=1.5: must be an integer at least 1"),
        ("optim.lr=1e300", "must be a number at least 0 and at most 3.4e38, as single precision is"),
        ("schedule.warmup=inf", "schedule.warmup=inf: must be a number at least 0 and finite"),
        ("schedule.warmup=nan", "schedule.warmup=nan: must be a number at least 0 and finite"),
        ("loss.label_smoothing=nan", "loss.label_smoothing=nan: must be a number in [0, 1)"),
        ("name=''", "name=: it is one folder"),
        (f"name={'n' * 300}", "a folder's name is at most 200 bytes long"),
        ("~seed", "seed is missing"),
        ("~loss", "an option needs a '_target_'"),
        ("~seed=5", "~seed=5: there is nothing of this name and value to take away"),
        ("=3", "'=3' names no key: write key=value"),
        ("loss=[ce", "cannot read 'loss=[ce'"),
        ("seed=${x", "cannot read 'seed=${x'"),
        ("optim.lr=", "optim.lr=: must be a number"),
    ],
)
def test_an_odd_word_is_one_line(word, expected, said):
    assert expected in said(word)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config-dir", "nodir"], "--config-dir nodir: there is no such folder"),
        (["--config-dir=nodir"], "--config-dir nodir: there is no such folder"),
        (["--config-dir"], "--config-dir needs a value: --config-dir DIR"),
        (["seed=1", "--cfg"], "--cfg needs a value: --cfg job"),
        (["--resolve"], "--resolve goes with --cfg job"),
        (["--agian"], "no flag '--agian'. Did you mean '--again'?"),
        (
            ["hook=ema", "hook=[clip,drw]"],
            "hook= stands there twice, and the later would take the place: hook=[ema,clip,drw]",
        ),
        (["+experiments=a/b"], "no key 'experiments'. Did you mean 'experiment'?"),
        (["+experiment"], "'+experiment' is not an override: write key=value"),
        (
            ["+experiment=pezeshki2021/tabel1"],
            "no experiment 'pezeshki2021/tabel1'. Did you mean 'pezeshki2021/table1'?",
        ),
        (["loss=Poly"], "no loss named 'Poly'. Did you mean 'poly'?"),
        (["seed=1", "--lits"], "no flag '--lits'. Did you mean '--list'?"),
        (["--config-drr=a"], "no flag '--config-drr=a'. Did you mean '--config-dir'?"),
    ],
)
def test_a_flag_is_one_line(words, expected, said):
    assert expected in said(*words)


def test_a_sweep_over_options_says_of_an_empty_value_what_a_run_does(said):
    lines = {said("-m", "loss=comp_sum,gce", "loss.tau="), said("loss=gce", "loss.tau=")}
    assert lines == {"loss.tau=: must be a number at least 0"}


def test_flags_may_stand_anywhere(capsys):
    assert main(["seed=3", "--cfg", "job", "train.steps=2"]) == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.seed, shown.train.steps) == (3, 2)


def test_a_whole_number_is_an_integer_however_it_is_written():
    assert compose("train.steps=1e1")["train"]["steps"] == 10
    for one, other in (
        (["train.steps=1e1", "seed=2e0"], ["train.steps=10", "seed=2"]),
        (["train.epochs=2e1"], []),
        (["model.hidden=[1.28e2]"], ["model.hidden=[128]"]),
        (["federated=fedavg", "federated.chunk=1e0"], ["federated=fedavg", "federated.chunk=1"]),
    ):
        assert identity(compose(*one)) == identity(compose(*other))
    assert compose(f"optim.lr={10**20}")["optim"]["lr"] == 1e20
    assert identity(compose()) == "049cd0b010"


BROKEN_YAML = {
    "scanner": ("a: b: c\n", "line 1, column 5"),
    "tab": ("_target_: x\n\ta: 1\n", "line 2"),
    "twice": ("_target_: x\na: 1\na: 2\n", "duplicate key a"),
    "number": (f"_target_: x\na: {LONG}\n", "digits"),
    "latin": (b"# M\xfcller\n_target_: x\n", "decode"),
}


@pytest.mark.parametrize(("content", "expected"), BROKEN_YAML.values(), ids=BROKEN_YAML)
def test_a_broken_yaml_is_one_line_that_names_the_file(content, expected, tmp_path, said):
    path = tmp_path / "mine" / "loss" / "own.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = said("--config-dir", "mine", "loss=own")
    assert "mine/loss/own.yaml: " in line
    assert expected in line
    assert main(["--config-dir", "mine", "--list", "loss"]) == 0


BROKEN_MODULES = {
    "syntax": ("def f(:\n", "SyntaxError: invalid syntax (NAME.py, line 1)"),
    "import": ("import torch\nimport nowhere_at_all\n", "No module named 'nowhere_at_all' (NAME.py, line 2"),
    "from": ("from runner.loss import Los\n", "ImportError: cannot import name 'Los'"),
    "raise": ("x = 1\n\ny = x / 0\n", "ZeroDivisionError: division by zero (NAME.py, line 3"),
    "exit": ("import sys\nsys.exit(3)\n", "SystemExit: 3 (NAME.py, line 2"),
    "empty": ("", "no 'Own' in 'NAME'"),
    "function": ("Own = 5\n", "must be a class, and this is an int"),
    "kind": ("class Own:\n    pass\n", "loss: Own (NAME.py) is no runner.loss.Loss"),
    "missing": (
        "from runner.loss import Loss\nclass Own(Loss):\n    def __init__(self, a): ...\n",
        "loss.a is missing",
    ),
}


@pytest.mark.parametrize(("name", "case"), BROKEN_MODULES.items(), ids=BROKEN_MODULES)
def test_a_broken_module_is_one_line_that_names_file_and_line(name, case, tmp_path, said):
    code, expected = case
    module = f"broken_{name}"
    (tmp_path / f"{module}.py").write_text(code)
    (tmp_path / "mine" / "loss").mkdir(parents=True)
    (tmp_path / "mine" / "loss" / "own.yaml").write_text(f"# Own -- me\n_target_: {module}.Own\n")
    assert expected.replace("NAME", module) in said("--config-dir", "mine", "loss=own")


@pytest.mark.parametrize("group", ["hook", "augment", "logger"])
def test_an_option_without_its_package_says_what_its_file_lacks(group, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / group).mkdir(parents=True)
    (tmp_path / "mine" / group / "own.yaml").write_text("_target_: my_own.Own\n")
    assert main(["--config-dir", "mine", f"{group}=own"]) == 2
    line = f"{group}: the YAML with _target_: my_own.Own begins with '# @package {group}.<its name>'"
    assert line in capfd.readouterr().err
