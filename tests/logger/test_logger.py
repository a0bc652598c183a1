"""Loggers while training and `runner.record.export` afterwards: what the trackers' own readers find there."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from runner.logger.tensorboard import TensorBoard
from runner.record.export import main
from runner.record.folder import Record
from tests.conftest import ROOT

CONFIG = {"name": "sweep", "seed": 3, "device": "cpu", "optim": {"lr": 0.1, "betas": [0.9, 0.999]}}
RESULT = {"id": "0123abcdef", "status": "done", "last": {"epoch": 3, "test_accuracy": 0.75}}
# numbers that fp32, as TensorBoard stores them, holds exactly
RECORDS = [
    {"step": 10, "epoch": 1, "train_loss": 0.5, "test_accuracy": 0.25},
    {"step": 20, "epoch": 2, "train_loss": 0.25, "test_accuracy": None},
    {"step": 30, "epoch": 3, "train_loss": 0.125, "test_accuracy": 0.75},
]


def train(folder: Path, loggers: list) -> None:
    with Record(folder, loggers) as record:
        record.start(CONFIG, [], None)
        for line in RECORDS:
            record.log(line)
        record.finish(RESULT)


# -- the options


@pytest.mark.parametrize("option", ["none", "tensorboard", "wandb"])
def test_options_have_a_title(option):
    lines = (ROOT / "conf" / "logger" / f"{option}.yaml").read_text().splitlines()
    title = next(line for line in lines if not line.startswith("# @package"))
    assert title.startswith("# ")
    assert " -- " in title


def composed(tmp_path, *overrides) -> dict:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    head = f"hydra:\n  searchpath: ['file://{ROOT / 'conf'}']\n"
    (tmp_path / "root.yaml").write_text(f"defaults: [_self_, {{logger: none}}]\n{head}")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        return OmegaConf.to_container(compose("root", list(overrides)))


def test_any_number_of_loggers_can_be_chosen(tmp_path):
    assert not composed(tmp_path).get("logger")
    assert list(composed(tmp_path, "logger=wandb")["logger"]) == ["wandb"]
    both = composed(tmp_path, "logger=[wandb,tensorboard]", "logger.wandb.mode=online")["logger"]
    assert both == {
        "wandb": {
            "_target_": "runner.logger.wandb.Wandb",
            "mode": "online",
            "project": "runner",
            "entity": None,
            "group": None,
            "tags": [],
        },
        "tensorboard": {"_target_": "runner.logger.tensorboard.TensorBoard"},
    }


def test_options_fit_their_constructors(tmp_path):
    from runner.command.build import build, check
    from runner.core.mistake import ConfigError

    nodes = composed(tmp_path, "logger=[wandb,tensorboard]")["logger"]
    for name, node in nodes.items():
        check(node, f"logger.{name}")
        build(node, f"logger.{name}")
    with pytest.raises(ConfigError, match="logger.wandb.mode=onlin: must be one of offline, online, disabled"):
        check(nodes["wandb"] | {"mode": "onlin"}, "logger.wandb")


# -- TensorBoard


def events(folder: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = events(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


EXPECTED = {
    "epoch": [(10, 1.0), (20, 2.0), (30, 3.0)],
    "train_loss": [(10, 0.5), (20, 0.25), (30, 0.125)],
    "test_accuracy": [(10, 0.25), (30, 0.75)],
}


def text(folder: Path, tag: str) -> list[str]:
    events_of_tag = events(folder).Tensors(f"{tag}/text_summary")
    return [event.tensor_proto.string_val[0].decode().strip("`\n") for event in events_of_tag]


def test_tensorboard_while_training(tmp_path):
    import yaml

    pytest.importorskip("tensorboard")
    train(tmp_path, [TensorBoard()])
    assert scalars(tmp_path) == EXPECTED
    (config,) = text(tmp_path, "config")
    assert yaml.safe_load(config) == CONFIG
    (result,) = text(tmp_path, "result")
    assert json.loads(result) == RESULT


def test_tensorboard_hides_what_is_computed_again(tmp_path):
    pytest.importorskip("tensorboard")
    with Record(tmp_path, [TensorBoard()]) as record:
        record.start(CONFIG, [], None)
        record.log({**RECORDS[0]})
        record.log({**RECORDS[1], "train_loss": 99.0})  # after the last save, and lost
        record.log({**RECORDS[2], "train_loss": 99.0})
    with Record(tmp_path, [TensorBoard()]) as record:
        record.start(CONFIG, [], 1)
        record.log(RECORDS[1])
        record.log(RECORDS[2])
        record.finish(RESULT)
    assert scalars(tmp_path) == EXPECTED


def test_export_to_tensorboard(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    train(tmp_path / "sweep" / "a", [])
    train(tmp_path / "sweep" / "b", [TensorBoard()])  # logged while training: nothing is doubled
    with Record(tmp_path / "sweep" / "c", []) as record:  # not finished
        record.start(CONFIG, [], None)
        record.log(RECORDS[0])
    for _ in range(2):
        main([str(tmp_path / "sweep"), "--to", "tensorboard"])
    assert scalars(tmp_path / "sweep" / "a") == EXPECTED
    assert scalars(tmp_path / "sweep" / "b") == EXPECTED
    assert scalars(tmp_path / "sweep" / "c") == {tag: points[:1] for tag, points in EXPECTED.items()}
    assert capsys.readouterr().out.splitlines()[0] == f"{tmp_path / 'sweep' / 'a'}: 3 records to tensorboard"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run in"),
        (["--to", "mlflow"], "invalid choice: 'mlflow'"),
        (["--to", "tensorboard", "--mode", "online"], "--mode belongs to --to wandb"),
    ],
)
def test_export_mistakes_are_one_line(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# -- Weights & Biases. Its offline file is a LevelDB log of protobuf records, which `wandb sync` uploads: it is parsed
# here, so what is checked is the id, the names, the whole config, every line of the history, the summary and the exit
# code as the server would get them; the upload itself is not.


def wandb_records(folder: Path) -> list[list]:
    """The records of every offline run under a run's folder, oldest first."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    runs = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, part, found = path.read_bytes(), 7, b"", []
        assert data[:4] == b":W&B"
        while at + 7 <= len(data):
            room = 32768 - at % 32768
            if room < 7:  # a block's end too short for a header is padding
                at += room
                continue
            _, length, kind = struct.unpack_from("<IHB", data, at)
            part += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last of several parts
                record = pb.Record()
                record.ParseFromString(part)
                found.append(record)
                part = b""
        runs.append(found)
    return runs


def items(pairs) -> dict:
    return {"/".join(pair.nested_key) or pair.key: json.loads(pair.value_json) for pair in pairs}


def wandb_history(records) -> list[dict]:
    lines = [items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    return [{key: value for key, value in line.items() if not key.startswith("_")} for line in lines]


def of(records, kind: str):
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from runner.record.export import main
from runner.logger.wandb import Wandb
from runner.record.folder import Record
from tests.logger.test_logger import CONFIG, RECORDS, train

root = Path(sys.argv[1])
train(root / "sweep" / "done", [Wandb(tags=["a"])])
try:
    with Record(root / "sweep" / "failed", [Wandb(project="other", group="mine")]) as record:
        record.start(CONFIG, [], None)
        record.log(RECORDS[0])
        raise RuntimeError("out of memory")
except RuntimeError:
    pass
with Record(root / "sweep" / "failed", [Wandb()]) as record:
    record.start(CONFIG, [], 1)
    record.log(RECORDS[1])
# two runs open at once stay apart
with Record(root / "one", [Wandb()]) as one, Record(root / "two", [Wandb(mode="disabled")]) as two:
    with Record(root / "three", [Wandb()]) as three:
        for record in (one, two, three):
            record.start(CONFIG, [], None)
        for record, line in ((one, RECORDS[0]), (three, RECORDS[1]), (two, RECORDS[1]), (one, RECORDS[2])):
            record.log(line)
train(root / "later" / "run", [])
print("--", flush=True)
main([str(root / "later" / "run"), "--project", "papers"])
"""


def test_wandb_offline_needs_no_network_and_no_login(tmp_path):
    pytest.importorskip("wandb")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment |= nowhere | {"HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "none")}
    (tmp_path / "home").mkdir()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(ROOT)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert run.returncode == 0, run.stderr
    live, exported = run.stdout.split("--\n")
    assert len((live + run.stderr).splitlines()) <= 1, live + run.stderr
    assert exported.splitlines() == [
        f"{tmp_path / 'later' / 'run'}: 3 records to wandb",
        "upload with: wandb sync <run folder>/wandb/offline-run-*",
    ]
    assert not (tmp_path / "wandb").exists()

    lines = [{key: value for key, value in line.items() if value is not None} for line in RECORDS]
    (done,) = wandb_records(tmp_path / "sweep" / "done")
    (start,) = of(done, "run")[:1]
    assert (start.run_id, start.project, start.run_group) == ("done", "runner", "sweep")
    assert (start.display_name, list(start.tags)) == ("sweep/done", ["a"])
    config = items(start.config.update)
    config.pop("_wandb", None)
    assert config == CONFIG
    assert wandb_history(done) == lines
    assert of(done, "exit")[0].exit_code == 0
    summary = {key: value for update in of(done, "summary") for key, value in items(update.update).items()}
    assert summary["status"] == "done"
    assert "0.75" in json.dumps({key: value for key, value in summary.items() if key.startswith("result")})

    failed, resumed = wandb_records(tmp_path / "sweep" / "failed")
    (start,) = of(failed, "run")[:1]
    assert (start.project, start.run_group) == ("other", "mine")
    assert wandb_history(failed) == lines[:1]
    assert of(failed, "exit")[0].exit_code == 1
    assert of(resumed, "run")[0].run_id == "failed"  # one run for the server
    assert wandb_history(resumed) == lines[1:2]
    assert of(resumed, "exit")[0].exit_code == 0

    (one,), (three,) = (wandb_records(tmp_path / name) for name in ("one", "three"))
    assert wandb_history(one) == [lines[0], lines[2]]
    assert wandb_history(three) == [lines[1]]
    assert wandb_records(tmp_path / "two") == []

    (replayed,) = wandb_records(tmp_path / "later" / "run")
    assert of(replayed, "run")[0].project == "papers"
    assert wandb_history(replayed) == lines
