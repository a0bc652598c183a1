"""Which runs a table may put side by side: those of one question, by one code, with measures that are numbers."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from runner.record.files import finished
from runner.sweep.cells import key_of

if TYPE_CHECKING:
    from runner.sweep.runs import Run

DEFAULT = "runs"  # conf/config.yaml: where runs go that nobody gave a name
SHOWN = 3


def default_metric(known: set[str]) -> str:
    """What a table shows unless told otherwise: the mean IoU of pixels, the NLL of tokens, accuracy, the mean absolute
    error of a regression, or what there is."""
    places = ["test_miou", *(["test_nll"] if "test_perplexity" in known else [])]
    wanted = [*places, "test_accuracy", "test_mae", *sorted(key for key in known if key.startswith("test_"))]
    return next((key for key in wanted if key in known), "test_accuracy")


def refuse_unlike(folder: Path, runs: list["Run"], keys: Iterable[str] = ()) -> None:
    """Raises ValueError for the default folder where its runs were not typed with the same keys: runs of all kinds go
    there, and a table over what differs between them compares nothing. A sweep's runs are typed alike.
    """
    if folder.absolute().name != DEFAULT or keys:
        return
    kinds = dict.fromkeys(" ".join(sorted({key_of(word) for word in run.typed} - {"seed"})) for run in runs)
    if len(kinds) > 1:
        shown = ", ".join(f"'{kind or 'the defaults'}'" for kind in list(kinds)[:SHOWN])
        raise ValueError(
            f"{folder} is where runs without a name go, and these differ in {len(kinds)} ways ({shown}"
            f"{', ...' if len(kinds) > SHOWN else ''}): give what belongs together a folder with name=..., or say what "
            "the rows are with --by"
        )


def notices(folders: Iterable[Path]) -> list[str]:
    """What the runs had to say before their first step, each line once."""
    found: dict[str, int] = {}
    count = 0
    for folder in folders:
        try:
            result = finished(folder)
        except ValueError:  # damaged: the table says so
            continue
        count += result is not None
        for line in dict.fromkeys((result or {}).get("notices") or []):
            found[line] = found.get(line, 0) + 1
    return [line if times == count else f"{line}  ({times} of {count} runs)" for line, times in found.items()]
