"""What goes elsewhere: loggers that are closed, fail, or lack their package; and the environment of a run."""

import importlib.metadata
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.logger import Logger
from runner.record.environment import checkout
from runner.record.files import finished
from runner.record.folder import Record, Stopped
from tests.record.made import CONFIG, RESULT, Spy, line, strict


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (SystemExit(143), "stopped"),
        (Stopped("SIGTERM"), "stopped"),
        (RuntimeError("out of\nmemory"), "failed"),
    ],
)
def test_loggers_are_closed_with_what_happened(folder, error, status):
    spies = [Spy(), Spy()]

    def run():
        with Record(folder, spies) as record:
            record.start(CONFIG, [], None)
            record.log(line(4))
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    assert [spy.calls[-1] for spy in spies] == [("finish", status, None)] * 2
    assert finished(folder) is None
    assert (folder / "failed.json").exists() == (status == "failed")
    if status == "failed":
        failed = strict((folder / "failed.json").read_text())
        assert (failed["status"], failed["type"], failed["message"]) == ("failed", "RuntimeError", "out of\nmemory")
        assert failed["step"] == 40
        assert "raise error" in failed["traceback"]
        with Record(folder, []) as record:
            record.start(CONFIG, [], None)
            assert not (folder / "failed.json").exists()


def test_a_failing_logger_is_dropped_with_one_warning(folder, caplog):
    class Broken(Spy):
        def log(self, record):
            super().log(record)
            raise ConnectionError("network is down")

    broken, fine = Broken(), Spy()
    with Record(folder, [broken, fine]) as record:
        record.start(CONFIG, [], None)
        record.log(line(1))
        record.log(line(2))
        record.finish(RESULT)
    assert [call[0] for call in broken.calls] == ["start", "log"]
    assert [call[0] for call in fine.calls] == ["start", "log", "log", "finish"]
    (warning,) = caplog.records
    assert "Broken" in warning.getMessage()
    assert "network is down" in warning.getMessage()
    assert finished(folder) == RESULT


def test_a_missing_package_is_one_line_and_the_others_are_closed(folder):
    class Absent(Logger):
        def start(self, folder, run_id, config, resumed):
            import package_that_nobody_has  # noqa: F401

    spy = Spy()
    with pytest.raises(ValueError, match="pip install package_that_nobody_has") as caught:  # noqa: SIM117
        with Record(folder, [spy, Absent()]) as record:
            record.start(CONFIG, [], None)
    assert "\n" not in str(caught.value)
    assert spy.calls[-1] == ("finish", "failed", None)


def test_environment_tells_versions_and_device(folder):
    with Record(folder, []) as record:
        record.start(CONFIG, [], None)
    (session,) = strict((folder / "environment.json").read_text())["sessions"]
    assert session["argv"] == sys.argv
    assert session["host"] == socket.gethostname()
    assert session["python"] == sys.version.split()[0]
    assert session["threads"] == torch.get_num_threads()
    assert session["device"] == "cpu"
    assert session["device_name"]
    assert session["cuda"] is None
    for package in ("torch", "hydra-core", "omegaconf", "numpy"):
        assert session["versions"][package] == importlib.metadata.version(package)


def git(folder: Path, *arguments: str, **options):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, **options).stdout


def test_the_commit_and_the_changes_are_kept(tmp_path):
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("a = 1\n")
    assert checkout(package) == (None, b"")
    repository = package.parent
    git(repository, "init", "--quiet")
    (repository / ".gitignore").write_text("venv\n")
    assert checkout(package) == (None, b"")  # no commit yet
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "first")
    head = git(repository, "rev-parse", "HEAD").decode().strip()
    assert checkout(package) == ({"commit": head, "dirty": False, "untracked": []}, b"")
    (package / "code.py").write_text("a = 2\n")
    (package / "new.py").write_text("")
    facts, patch = checkout(package)
    assert facts == {"commit": head, "dirty": True, "untracked": ["package/new.py"]}
    git(repository, "checkout", "--quiet", "--", ".")
    git(repository, "apply", "-", input=patch)
    assert (package / "code.py").read_text() == "a = 2\n"
    installed = repository / "venv" / "package"  # a virtual environment in somebody's checkout is not that checkout
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("")
    assert checkout(installed) == (None, b"")


def test_light_imports():
    heavy = ("torch", "torchvision", "timm", "datasets", "sklearn", "scipy", "pandas", "PIL")
    heavy += ("matplotlib", "wandb", "tensorboard")
    modules = ("record.folder", "record.curves", "record.export", "sweep.table", "logger.wandb", "logger.tensorboard")
    code = "import sys\n" + "".join(f"import runner.{module}\n" for module in modules)
    code += f"print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
