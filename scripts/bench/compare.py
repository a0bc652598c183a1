"""Two ways to train, side by side: rows of a report and notes for it."""

from scripts.bench.cases import Case, Steps
from scripts.bench.rounds import CONTROL, Ratio, Row, Target, medians, take_turns, take_turns_together

Found = tuple[list[Row], list[str]]


def epochs(
    case: Case, arms: dict[str, tuple], targets: dict[str, float | None], rounds: tuple[int, int], threads: int = 1
) -> Found:
    """Our steps per second over those of every other arm, in whole trainings of the case. `arms` begins with ours.

    rounds : and turns in each.
    """
    seconds = take_turns(arms, *rounds, threads)
    ours, *others = arms
    control = Ratio.of(seconds[CONTROL], seconds[ours])
    rows = []
    for other in others:
        target = targets[other] and Target(targets[other], at_least=True)
        rows.append(
            Row(f"{case.name}: speed of {ours} over {other}", Ratio.of(seconds[other], seconds[ours]), control, target)
        )
    return rows, [f"{case}; {_rounds(rounds)}; {medians(seconds, 'step', case.steps)}"]


def steps(
    cases: dict[Case, int],
    names: tuple[str, str],
    overrides: tuple[str, ...],
    *,
    rounds: tuple[int, int],
    most: float | None = None,
    threads: int = 1,
    device: str = "cpu",
    common: tuple[str, ...] = (),
    make: type = Steps,
) -> Found:
    """The time of a step with `overrides` over one without, called by `names`: (without, with).

    cases : with the steps of one measurement. rounds : and turns in each. most : the target. common : overrides of
    both arms. make : the second arm's class.
    """
    rows, notes = [], []
    base, other = names
    for case, count in cases.items():
        arms = {base: (Steps, case, count, device, common), other: (make, case, count, device, (*common, *overrides))}
        seconds = take_turns(arms, *rounds, threads)
        control = Ratio.of(seconds[CONTROL], seconds[base])
        target = most and Target(most, at_least=False)
        rows.append(
            Row(f"{case.name}: time of {other} over {base}", Ratio.of(seconds[other], seconds[base]), control, target)
        )
        times = medians(seconds, "step", count)
        notes.append(f"{case.name}, batch {case.batch_size}; {_rounds(rounds)} of {count} steps; {times}")
    return rows, notes


def several(
    case: Case, arms: dict[str, tuple], most: dict[str, float], rounds: tuple[int, int], count: int, threads: int = 1
) -> Found:
    """The time of a step of every arm over one of the first, in one process; printed as found.

    most : the targets, of arms that have one. rounds : and turns in each. count : steps of one measurement.
    """
    seconds = take_turns_together(arms, *rounds, threads)
    base, *others = arms
    control = Ratio.of(seconds[CONTROL], seconds[base])
    rows = []
    for other in others:
        target = Target(most[other], at_least=False) if other in most else None
        ratio = Ratio.of(seconds[other], seconds[base])
        rows.append(Row(f"{case.name}: time of {other} over {base}", ratio, control, target))
        print(rows[-1].cells(), flush=True)
    times = medians(seconds, "step", count)
    return rows, [f"{case.name}, batch {case.batch_size}; {_rounds(rounds)} of {count} steps; {times}"]


def _rounds(rounds: tuple[int, int]) -> str:
    return f"{rounds[0]} rounds of {rounds[1]} turns"
