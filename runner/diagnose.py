"""When the loss is not finite: which step, at what lr, and the first tensor at fault."""

import torch
from torch import Tensor

from runner.batch import Batch


class NonFinite(Exception):
    """Training diverged; the message is for the user."""


def explain(run, batch: Batch | None, step: int | None = None) -> str:
    """One line: the step, the learning rate and the first tensor that is not finite.

    The tensors are looked at in the order in which a step makes them: weights, inputs, targets, every module's output,
    the loss. On a GPU the losses are looked at every few steps, so that the weights may have gone bad since.
    """
    lr = run.optimizer.param_groups[0]["lr"]
    step = run.count if step is None else step
    at = f"the loss is not finite at step {step} (epoch {step // run.steps_per_epoch + 1}, lr {lr:.4g}, precision "
    culprit = _first(run, batch)
    return f"{at}{run.precision.name}); the first tensor that is not finite: {culprit}"


@torch.no_grad()
def _first(run, batch: Batch | None) -> str:
    for name, view in run.weights.views(run.weights.data):
        if not torch.isfinite(view).all():
            return f"the weight '{name}' (an earlier update broke it: a lower lr, clipping or warm-up may help)"
    for name, buffer in run.model.named_buffers():
        if buffer.is_floating_point() and not torch.isfinite(buffer).all():
            return f"the buffer '{name}'"
    if batch is None:
        return "unknown, the batch is gone"
    if not torch.isfinite(batch.x).all():
        return "the inputs of the batch"
    if batch.y.is_floating_point() and not torch.isfinite(batch.y).all():
        return "the targets of the batch"
    found: list[str] = []

    def hook(name: str):
        def look(module, inputs, output):
            outputs = [output] if isinstance(output, Tensor) else vars_of(output)
            if not found and any(not torch.isfinite(tensor).all() for tensor in outputs):
                found.append(name)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in run.model.named_modules() if name]
    try:
        with run.statistics(live=False), run.precision.autocast():
            out = run.model(batch.x)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the output of '{found[0]}' ({type(run.model.get_submodule(found[0])).__name__})"
    losses = run.loss(run.loss.head(out), batch)
    if not torch.isfinite(losses).all():
        bad = int((~torch.isfinite(losses)).sum())
        return f"the loss of {bad} of {losses.numel()} samples ({type(run.loss).__name__}); the logits are finite"
    return "the risk, a penalty or the gradient; all per-sample losses are finite"


def vars_of(output) -> list[Tensor]:
    values = [getattr(output, name, None) for name in ("logits", "features")]
    return [value for value in values if isinstance(value, Tensor)]
