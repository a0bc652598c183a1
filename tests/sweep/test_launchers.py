"""Sweeps under every launcher: cells are checked first, in one pass, and a table comes last."""

import json
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.__main__ import main
from runner.command.compose import resolved
from runner.command.config import check_all
from runner.command.listing import conf_dir
from runner.core.mistake import ConfigError
from runner.sweep import process
from runner.sweep.cells import Composer
from tests.conftest import ROOT
from tests.engine.test_distributed import free_port, torchrun
from tests.tiny import SMALL


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(process, "warm", lambda: None)  # nothing here comes as far as a worker
    return tmp_path


# ---- composing

MIXED = [
    ["seed=0,1,2", "optim.lr=0.1,1e-3,.5", "loss=ce,poly"],
    ["model.hidden=[8],[8,4],[]", "seed=range(0,3)", "hook=[ema,clip],none"],
    ["optim=sam,adam", "optim.lr=0.1,0.2", "optim.weight_decay=0,1e-4"],
    ["dataset.subset=null,100", "dataset.noise_rate=0,0.2", "dataset.noise=symmetric"],
    ["optim=sam", "sharpness.rho=0.05,0.1,0", "sharpness=sam,asam"],
    ["+model.dropout=0.1", "seed=0,1"],
    ["++train.epochs=3,4", "seed=0,1"],
    ["~optim.nesterov", "seed=1,2"],
    ["name='1e3','007',\"null\",abc,true", "seed=0,1"],
    ["name=run-${seed}", "seed=3,4"],
    ["seed=5,6", "optim.lr=${dataset.val}"],
    ["dataset.val=0.1,0.2", "optim.lr=${.weight_decay}", "optim.weight_decay=0.01,0.02"],
    ["train={epochs:2},{epochs:3}", "seed=0,1"],
    ["train.drop_last=true,false", "train.precision=fp32,bf16", "device=cpu"],
    ["optim.lr=choice(0.1,0.2)", "seed='4','5'"],
    ["outputs_dir=a,'b c'", "data_dir=null,/data", "loss=ce,poly"],
    ["augment=[crop_flip,cutout],crop_flip", "augment.crop_flip.padding=1,2"],
    ["seed=int(3.7),int(4.2)", "optim.lr=float(1),float(2)"],
    ["optim.lr=1_000,inf,0.1", "seed=0"],
]


def every(words: list[str], loader) -> list[list[str]]:
    """The cells as Hydra's basic sweeper cuts them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parsed = OverridesParser.create(config_loader=loader).parse_overrides(words)
    return BasicSweeper.split_arguments(parsed, None)[0]


@pytest.fixture
def by_hydra():
    """overrides -> the config as Hydra alone composes it; `calls` counts."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra

        def compose(overrides: list[str]):
            compose.calls += 1
            return hydra.compose_config("config", list(overrides), run_mode=RunMode.RUN, from_shell=False)

        compose.loader, compose.calls = hydra.config_loader, 0
        yield compose


@pytest.mark.parametrize("words", MIXED, ids=" ".join)
def test_composed_from_another_cell_is_composed_by_hydra(words, by_hydra):
    """Every cell of a sweep, or the kind of error and for our own the words of it."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # not before Hydra has scanned its plugins

    overrides = OverridesParser.create(config_loader=by_hydra.loader).parse_overrides(words)
    cells = BasicSweeper.split_arguments(overrides, None)[0]
    assert len(cells) > 1
    assert_composed_by_hydra(cells, by_hydra)


def test_cells_of_different_keys_are_composed_from_one(by_hydra):
    shared = ["loss=poly", "hook=[ema]", "optim=sam"]
    own = [
        [],
        ["loss.epsilon=2"],
        ["hook.ema.decay=0.5", "seed=3"],
        ["sharpness.rho=0.2", "model.hidden=[4]", "name=a"],
    ]
    compose = Composer(by_hydra)
    assert len({json.dumps(compose([*shared, *words]).config) for words in own}) == len(own)
    assert by_hydra.calls == 1
    cells = [[*shared, *words] for words in own] + [[*words, *shared] for words in own]
    cells += [["++optim.lr=0.2", "optim.lr=0.3"], ["optim.lr=0.3", "++optim.lr=0.2"]]  # the later wins
    cells += [["train={epochs:2}", "train.epochs=5"], ["train.epochs=5", "train={epochs:2}"]]
    cells += [["~hook", "hook.ema.decay=0.5"], ["loss.epsilon=2"], ["loss.epsilon=2", "loss=poly"], ["train=3"]]
    cells += [["model.hidden.0=3"], ["model.hidden=[8,8]", "model.hidden.0=3"], ["loss=nobody", "seed=1"]]
    assert_composed_by_hydra(cells, by_hydra)


def assert_composed_by_hydra(cells: list[list[str]], by_hydra) -> None:
    compose = Composer(by_hydra)

    def alone(cell: list[str]) -> dict:
        cfg = by_hydra(cell)
        config = resolved(cfg, OmegaConf.to_container(cfg.hydra.runtime.choices))
        check_all(config)
        return config

    for cell in cells:
        found = []
        for make in (alone, lambda cell: compose(cell).config):
            try:
                found.append(json.dumps(make(cell)))
            except (ConfigError, HydraException, OmegaConfBaseException) as error:
                found.append((type(error), str(error) if isinstance(error, ConfigError) else ""))
        assert found[0] == found[1], cell


def test_hydra_composes_once_for_every_combination_of_options(by_hydra):
    compose = Composer(by_hydra)
    cells = [
        compose([f"seed={seed}", f"loss={loss}", f"model.hidden=[{seed + 1}]"])
        for loss in ("ce", "poly", "focal")
        for seed in range(30)
    ]
    assert len({cell.folder for cell in cells}) == 90
    assert by_hydra.calls == 3


# ---- before the first run


@pytest.mark.parametrize("launcher", ["pool", "basic", "joblib", "submitit_local"])
def test_a_mistake_in_any_cell_is_one_line_and_writes_nothing(launcher, place, capfd):
    if launcher not in ("pool", "basic"):
        pytest.importorskip(launcher.partition("_")[0], reason="the extra 'launchers' is not installed")
    words = [] if launcher == "pool" else [f"hydra/launcher={launcher}"]
    assert main(["-m", "optim.lr=0.1,0.2,fast", "seed=0,1", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "runner: optim.lr=fast: must be a number at least 0\n"
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["hydra/launcher=jobli", "seed=1"], "no launcher named 'jobli'. Did you mean 'joblib'?"),
        (["seed=range(3,3)"], "the sweep has no runs"),
        (["sweep.jobs=0"], "sweep.jobs=0: must be one of auto or an integer at least 1"),
        (["sweep.on_error=halt"], "sweep.on_error=halt: must be one of continue, stop"),
        (["sweep.pck=2"], "no key 'sweep.pck'. Did you mean 'sweep.pack'?"),
    ],
)
def test_mistakes_about_the_sweep_itself(words, expected, place, capfd):
    if "jobli" in words[0]:
        pytest.importorskip("joblib", reason="the extra 'launchers' is not installed")
    assert main(["-m", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert expected in line
    assert list(place.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(place, capfd):
    (place / "taken").write_text("a file")
    assert main(["-m", "seed=0,1", "outputs_dir=taken"]) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith("runner: ")
    assert (place / "taken").read_text() == "a file"


# ---- to the table


def table(stdout: str) -> str:
    return stdout[stdout.rindex("test_accuracy in %") :]


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_hydras_launchers_run_the_cells(launcher, place, capfd, monkeypatch):
    """Two cells, of which one is given twice and one fails."""
    if launcher != "basic":
        pytest.importorskip(launcher.partition("_")[0], reason="the extra 'launchers' is not installed")
    words = ["seed=0,0", "optim.lr=0.1,1e20", "schedule=constant", "device=cpu", *SMALL, f"hydra/launcher={launcher}"]
    words += ["hydra.launcher.timeout_min=5"] if launcher == "submitit_local" else []
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the processes that these start
    status, (out, err) = main(["-m", *words]), capfd.readouterr()
    assert status == 1, err
    assert out.startswith("sweep of 2 runs in ")
    assert len(list(place.glob("outputs/runs/*/result.json"))) == 1
    assert len(list(place.glob("outputs/runs/*/failed.json"))) == 1
    assert "1e+20" in table(out)
    assert "(n=1)" in table(out)
    assert "1 of 2 runs failed:" in err
    assert "failed.json" in err.splitlines()[-1]
    assert (place / "outputs/runs/table.csv").exists()


def test_torchrun_shares_one_cell_after_another(place):
    result = torchrun("-m", "seed=0,1", "device=cpu", *SMALL, cwd=place, port=free_port())
    assert result.returncode == 0, result.stderr
    assert len(list(place.glob("outputs/runs/*/result.json"))) == 2
    assert result.stdout.count("sweep of 2 runs") == 1
    assert table(result.stdout).count("0,1") == 1
    for path in place.glob("outputs/runs/*/environment.json"):
        assert json.loads(path.read_text())["sessions"][0]["processes"] == 2
