"""When the loss, the weights or a measure is not finite: which step, at what lr, and the first tensor at fault."""

import torch
from torch import Tensor

from runner.core import distributed
from runner.core.batch import Batch
from runner.core.measure import broken

REMEDIES = "a lower lr, clipping or warm-up may help"


class NonFinite(Exception):
    """Training diverged; the message is for the user."""


def explain(run, batch: Batch | None, step: int | None = None) -> str:
    """One line: the step, the learning rate and the first tensor that is not finite.

    The tensors are looked at in the order in which a step makes them: weights, inputs, targets, every module's output,
    the loss. On a GPU the losses are looked at every few steps, so that the weights may have gone bad since.
    """
    step = run.count if step is None else step
    at = f"the loss is not finite at step {step} ({_when(run, step)})"
    return f"{at}; the first tensor that is not finite: {_first(run, batch)}"


def check_model(run) -> None:
    """Raise NonFinite where the weights or the running statistics are not finite: no later step makes them so again."""
    norms = (getattr(norm, name, None) for norm in run.norms for name in ("running_mean", "running_var"))
    tensors = [run.weights.data, *(tensor for tensor in norms if tensor is not None)]
    finite = bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all())
    if distributed.any_of(not finite, run.device):
        culprit = "another process's" if finite else _first(run, None)
        raise NonFinite(f"the model is not finite {_after(run)}; the first tensor that is not finite: {culprit}")


def check_measures(run, of: str, found: dict[str, float | None]) -> None:
    """Raise NonFinite where what was measured last is no result."""
    if wrong := broken(found):
        raise NonFinite(
            f"{of} {', '.join(wrong)} not finite {_after(run)}: the weights are, and the outputs overflow; {REMEDIES}"
        )


def _after(run) -> str:
    if run.unit != "epoch":
        return f"after {run.unit} {run.count} (precision {run.precision.name})"
    return f"after step {run.count} ({_when(run, max(run.count - 1, 0))})"


def _when(run, step: int) -> str:
    lr = run.optimizer.param_groups[0]["lr"]
    return f"epoch {step // run.steps_per_epoch + 1}, lr {lr:.4g}, precision {run.precision.name}"


@torch.no_grad()
def _first(run, batch: Batch | None) -> str:
    for name, view in run.weights.views(run.weights.data):
        if not torch.isfinite(view).all():
            return f"the weight '{name}' (an earlier update broke it: {REMEDIES})"
    for name, buffer in run.model.named_buffers():  # others than statistics may be infinite by design, as masks are
        if buffer.is_floating_point() and (torch.isnan(buffer).any() or "running_" in name and buffer.isinf().any()):
            return f"the buffer '{name}' ({REMEDIES})"
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
            out = run.loss.ask(lambda x, **given: run.loss.head(run.model(x, **given)), batch)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the output of '{found[0]}' ({type(run.model.get_submodule(found[0])).__name__})"
    losses = run.loss(out, batch)
    if not torch.isfinite(losses).all():
        bad = int((~torch.isfinite(losses)).sum())
        return f"the loss of {bad} of {losses.numel()} samples ({type(run.loss).__name__}); the logits are finite"
    return "the risk, a penalty or the gradient; all per-sample losses are finite"


def vars_of(output) -> list[Tensor]:
    values = [getattr(output, name, None) for name in ("logits", "features")]
    return [value for value in values if isinstance(value, Tensor)]
