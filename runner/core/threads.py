"""How many of the cores a run's arithmetic takes on a CPU: one where the run is small."""

import torch

SMALL = 2 * 10**7  # multiplications of a pass, below which a run takes one thread: scripts/bench/results/beside.md
_allowed: int | None = None


def allowed() -> int:
    """Threads that a run may take: what torch found when it began (the cores, or OMP_NUM_THREADS), or `allow`."""
    global _allowed
    if _allowed is None:
        _allowed = torch.get_num_threads()
    return _allowed


def allow(count: int) -> None:
    """From now on runs in this process may take so many, as workers of a pool share the cores."""
    global _allowed
    _allowed = count
    torch.set_num_threads(count)


def most(wanted: int | str) -> int:
    """The threads that `train.threads` gives a run, if its work is not small."""
    return allowed() if wanted == "auto" else wanted


def take(wanted: int | str, multiplications: float) -> None:
    """Set torch's threads to the wanted number; for `auto` to all that are allowed, or to one for small work.

    The rule asks for the size of the work and not for what else the machine does: how many threads share a sum decides
    how it rounds. For a small pass two threads, which meet after every operation, are a fifth faster at most; beside
    other work, where one of them has to wait for a core, they are several times slower.
    """
    small = wanted == "auto" and multiplications < SMALL
    torch.set_num_threads(1 if small else most(wanted))
