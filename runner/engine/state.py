"""The state of a run, as its checkpoint has it."""

from typing import TYPE_CHECKING

from runner.core import checkpoint, distributed

if TYPE_CHECKING:
    from runner.engine.trainer import Trainer


def of(run: "Trainer") -> dict:
    """What `last.pt` holds of a run: all that its next step depends on."""
    return {
        "model": run.model.state_dict(),
        "loss": run.loss.state_dict(),
        "risk": run.risk.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "hooks": run.hooks.state_dict(),
        "scale": run.precision.scale.state_dict() if run.precision.scale else None,
        "random": distributed.all_of(run.random or checkpoint.random_states()),
        "count": run.count,
        "sums": distributed.all_of(run.sums().cpu()),
        "best": run.best,
        "seconds": run.seconds,
        "lines": run.record.lines,
    }


def restore(run: "Trainer", state: dict) -> None:
    """Go on from where `of` was taken."""
    run.model.load_state_dict(state["model"])
    run.loss.load_state_dict(state["loss"])
    run.risk.load_state_dict(state["risk"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.hooks.load_state_dict(state["hooks"])
    if run.precision.scale and state["scale"]:
        run.precision.scale.load_state_dict(state["scale"])
    random = state["random"][distributed.rank % len(state["random"])]
    if run.random is None:
        checkpoint.restore_random_states(random)
    else:
        run.random = random
    run.count, run.best, run.seconds = state["count"], state["best"], state["seconds"]
    if len(state["sums"]) == distributed.world:
        sums = state["sums"][distributed.rank]
    else:  # resumed on another number of processes
        sums = sum(state["sums"]) * (distributed.rank == 0)
    run.loss_sum.fill_(sums[0].item()), run.correct.fill_(int(sums[1]))
    run.samples = int(sums[2])
