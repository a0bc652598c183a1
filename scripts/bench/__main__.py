"""`python -m scripts.bench [--threads N] [name ...]`: measure, print, and write results/<name>.md for each bench."""

import argparse
import importlib
import sys
import time

from scripts.bench import report

NAMES = (
    "loop", "augment", "sam", "rows", "optim", "cost", "qat", "start", "compile", "replicas", "sweep", "federated",
    "beside",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description="Speed, as ratios in one run.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"{', '.join(NAMES)}; default: all")
    parser.add_argument("--threads", type=int, default=1, help="of every arm; default 1: others disturb it least")
    chosen = parser.parse_args(argv)
    for name in chosen.names:
        if name not in NAMES:
            parser.error(f"no bench '{name}'; there are {', '.join(NAMES)}")
    for name in chosen.names or NAMES:
        bench = importlib.import_module(f"scripts.bench.{name}")
        begin = time.perf_counter()
        found = bench.measure(chosen.threads)
        flag = "" if chosen.threads == 1 else f" --threads {chosen.threads}"
        command = f"python -m scripts.bench {name}{flag}"
        where = getattr(bench, "WHERE", report.APART)
        content = report.text(bench.TITLE, bench.ABOUT, found, command, bench.PACKAGES, chosen.threads, where=where)
        report.write(name, content)
        print(f"{name} took {time.perf_counter() - begin:.0f} s\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
