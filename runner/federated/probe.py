"""Whether clients are trained side by side: tried and measured in the first round."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from runner.core import checkpoint
from runner.engine.diagnose import NonFinite
from runner.engine.packable import tolerance
from runner.engine.stacked import Unpackable
from runner.federated.clients import Clients, Updates
from runner.federated.crew import Crew

SIZES = (8, 32, 128)  # clients side by side that are tried
WORTH = 1.1  # times the speed of one after another, below which side by side is not worth its risk
TRIAL = 0.1  # seconds that either way is measured for
STEPS = 4  # local steps after which both ways must have come to the same weights


def probe(clients: Clients, chosen: list[int], round_: int, start: Tensor, buffers, hook, brief) -> tuple[int, str]:
    """How many clients to train side by side, and one line that says why; nothing is changed.

    Two of them are trained both ways for a few steps, which must come to the same weights; then the time of a step
    of one client is measured for either way, as the processor's on a CPU: other work does not count.
    """
    if why := clients.apart():
        return 1, f"one after another: {why}"
    run = clients.run
    kept = run.loss_sum.clone(), run.correct.clone(), run.samples, checkpoint.random_states()
    clock = time.process_time if run.device.type == "cpu" else time.perf_counter

    def alone(client: int, limit: int) -> Updates:
        brief(hook, [client])
        return clients.alone(client, round_, start, buffers, limit)

    def crew_of(chunk: list[int], size: int) -> Crew:
        crew = Crew(clients, size)
        brief(crew.hooks.named.get("client"), [*chunk, *[chunk[-1]] * (size - len(chunk))])
        return crew

    def pace(train: Callable[[], Updates]) -> float:
        """Local steps per second: the median after a first measurement, of one where they are long."""
        found = []
        while len(found) < (3 if sum(t for t, _ in found) < 1 else 2) or (
            sum(t for t, _ in found) < TRIAL and len(found) < 20
        ):
            begun = clock()
            steps = float(train().steps.sum())
            if run.device.type == "cuda":
                torch.cuda.synchronize(run.device)
            found.append((clock() - begun, steps))
        return statistics.median(steps / max(taken, 1e-9) for taken, steps in found[1:])

    try:
        ends = sorted(chosen, key=lambda client: clients.per_epoch[client])
        pair = clients.chunks([ends[0], ends[-1]], 2)[0] if len(ends) > 1 else []
        if len(pair) < 2:
            return 1, "one after another: fewer than two clients that could go together"
        one = [alone(client, STEPS) for client in pair]
        both = crew_of(pair, 2).answers(pair, round_, start, buffers, STEPS)
        for k, own in enumerate(one):
            moved, off = own.delta[0].double().norm(), (both.delta[k] - own.delta[0]).double().norm()
            if not off <= tolerance(run) * moved:
                return 1, f"one after another: side by side the weights differ by {(off / moved).item():.1%}"
        middle, limit = ends[len(ends) // 2], 10
        single, best, side = pace(lambda: alone(middle, limit)), WORTH, 1
        for size in (size for size in SIZES if size <= 2 * len(chosen)):
            chunk = clients.chunks(chosen, size)[0]
            crew = crew_of(chunk, len(chunk))
            gain = pace(lambda c=crew, p=chunk: c.answers(p, round_, start, buffers, limit)) / single
            if gain <= best:
                break  # larger ones are slower still
            best, side = gain, size
        if side == 1:
            return 1, "one after another: no faster side by side"
        return side, f"up to {side} side by side, {best:.1f} times as fast as one after another"
    except (NonFinite, Unpackable, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        said = (str(error).splitlines() or [""])[0]
        return 1, f"one after another: {type(error).__name__}: {said:.150}"
    finally:
        run.loss_sum.copy_(kept[0]), run.correct.copy_(kept[1])
        run.samples = kept[2]
        checkpoint.restore_random_states(kept[3])
