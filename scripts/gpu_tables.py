"""Papers' tables on a GPU, those first that tell most for a minute: `make gpu-tables MINUTES=40`.

Every table is the ordinary command, one seed after another, so that what is done is skipped and what is interrupted
goes on. At the end of the time the runs in progress are saved. Nothing is committed: the tables are in outputs/.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

# (experiment, seeds): long tails take a minute or three a run, plain networks seven, wide ones half an hour
ORDER = [
    ("cao2019/table2_cifar_lt", (0, 1, 2)),
    ("rangwani2022/cifar10_lt", (0, 1, 2)),
    ("rangwani2022/cifar100_lt", (0, 1, 2)),
    ("foret2021/table4_label_noise", (0,)),
    ("du2022/table3", (0,)),
    ("zoo/cifar10", (0,)),
    ("zoo/cifar100", (0,)),
    ("liu2020/cifar10", (0,)),
    ("liu2020/cifar100", (0,)),
    ("davda54/wrn16_8", (0,)),
    ("wu2023/cifar10", (0,)),
    ("mukhoti2020/cifar10", (0,)),
    ("li2022/cifar10", (0,)),
    ("li2022/fashion_mnist", (0,)),
    ("li2022/mnist", (0,)),
    ("foret2021/table1_cifar100", (0,)),
    ("foret2021/table1_cifar10", (0,)),
]
GRACE = 60.0  # seconds that the runs in progress have for saving


def commands(more: list[str]) -> list[list[str]]:
    """One for each table and seed; all tables' first seeds come before any second."""
    rounds = max(len(seeds) for _, seeds in ORDER)
    found = []
    for turn in range(rounds):
        for name, seeds in ORDER:
            if turn < len(seeds):
                found.append([sys.executable, "-m", "runner", f"+experiment={name}", f"seed={seeds[turn]}", *more])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where all is done, 1 where time ran out or something failed."""
    parser = argparse.ArgumentParser(prog="python -m scripts.gpu_tables", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=40.0, help="after which what is in progress is saved")
    parser.add_argument("overrides", nargs="*", help="for every table, such as sweep.jobs_per_gpu=4")
    given = parser.parse_args(arguments)
    end, left = time.monotonic() + 60 * given.minutes, 0
    for command in commands(given.overrides):
        if time.monotonic() >= end:
            left += 1
            continue
        print(f"\n$ python {' '.join(command[1:])}", flush=True)
        left += ran(command, end) != 0
    print(f"\n{left} of {len(commands([]))} commands are not done; the same command goes on" if left else "\nall done")
    return 1 if left else 0


def ran(command: list[str], end: float) -> int:
    """The exit status of a command that is told to save what it has at `end`."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(max(end - time.monotonic(), 0))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()


if __name__ == "__main__":
    sys.exit(main())
