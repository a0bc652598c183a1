"""Where and with what a run was computed."""

import platform
import socket
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "timm", "datasets", "numpy")


def environment(device: str) -> dict:
    """What the numbers may depend on, apart from the config and the code."""
    import torch  # not above: the table and the export read folders and need none of it

    from runner.core import distributed

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    where = distributed.device(device)
    on_gpu = where.type == "cuda" and torch.cuda.is_available()
    return {
        "argv": sys.argv,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "device": str(where),
        "device_name": torch.cuda.get_device_name(where) if on_gpu else processor(),
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "threads": torch.get_num_threads(),
        "processes": distributed.world,
    }


@lru_cache(maxsize=1)
def code() -> tuple[dict | None, bytes]:
    """The checkout of this program when it was first asked for: later edits are not what this process runs."""
    return checkout(Path(__file__).parent)


@lru_cache(maxsize=1)
def processor() -> str:
    """The CPU's name where the system tells, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def checkout(folder: Path) -> tuple[dict | None, bytes]:
    """The commit of the git checkout that holds `folder`, whether it is dirty, and the changes as a patch.

    Files that git does not know are named and not in the patch. (None, b"") where the folder is installed, not checked
    out (a virtual environment inside somebody's checkout included), or git is missing or does not answer.
    """

    def git(*arguments: str) -> bytes:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=20).stdout

    try:
        if not git("ls-files", "--", "."):
            return None, b""
        commit = git("rev-parse", "HEAD").decode().strip()
        status = git("status", "--porcelain").decode(errors="replace").splitlines()
        patch = git("diff", "--binary", "--no-ext-diff", "--no-color", "HEAD") if status else b""
    except (OSError, subprocess.SubprocessError):
        return None, b""
    return {"commit": commit, "dirty": bool(status), "untracked": [x[3:] for x in status if x[:2] == "??"]}, patch
