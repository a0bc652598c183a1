"""A right method of a user's at every seam, as the text of a file, and the words that put it there."""

import textwrap
from pathlib import Path

BASE = ["dataset.subset=60", "train.batch_size=10", "train.epochs=1", "model.hidden=[8]"]
HEAD = """
import sys
import torch
from torch import nn
from torch.nn import functional as F
from dataclasses import replace
from contextlib import contextmanager
from runner.augment import Augment
from runner.core.batch import Batch, Output, Pass
from runner.federated import Federated
from runner.hook import Hook
from runner.loss import Loss
from runner.quantization import Transform
from runner.risk import Risk
from runner.schedule import Schedule
from runner.sharpness import Sharpness

def ce(out, batch):
    return F.cross_entropy(out.logits, batch.y, reduction="none")
"""
# What the words of a command and the class of a right method are, of each seam
RIGHT = {
    "model": (
        ["model._target_={}", "~model.hidden"],
        """
class Own(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.head = nn.Linear(64, classes)
    def forward(self, x):
        return Output(self.head(x.flatten(1)), x.flatten(1))
""",
    ),
    "loss": (
        ["loss._target_={}", "~loss.label_smoothing"],
        """
class Own(Loss):
    def forward(self, out, batch):
        return ce(out, batch)
    def observe(self, out, batch):
        pass
""",
    ),
    "risk": (
        ["risk._target_={}"],
        """
class Own(Risk):
    def forward(self, losses, batch):
        return losses.mean()
    def observe(self, losses, batch, step, steps):
        pass
""",
    ),
    "optim": (
        ["optim._target_={}", *(f"~optim.{key}" for key in ("momentum", "weight_decay", "dampening", "nesterov"))],
        """
class Own(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 0.1):
        super().__init__(params, {"lr": lr})
    def step(self, closure):
        loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad, alpha=-group["lr"])
        return loss
""",
    ),
    "schedule": (
        ["schedule._target_={}", "~schedule.final", "~schedule.warmup"],
        """
class Own(Schedule):
    def factor(self, progress, epoch):
        return 1 - progress
""",
    ),
    "sharpness": (
        ["sharpness._target_={}"],
        """
class Own(Sharpness):
    def __call__(self, closure, weights):
        first = closure()
        with weights.restored():
            weights.add_(weights.grad, 0.01)
            closure()
        return first
""",
    ),
    "quantization": (
        ["quantization._target_={}"],
        """
class Own(Transform):
    def prepare(self, model, batch):
        return model
    def convert(self, model, batch):
        return model
""",
    ),
    "hook": (
        ["+hook.own._target_={}"],
        """
class Own(Hook):
    count = 0
    def start(self, run):
        pass
    def before(self, run):
        pass
    def batch(self, run, batch):
        return batch
    def loss(self, run, out, batch):
        return 0.01 * out.logits.square().mean()
    def observe(self, run, out, batch):
        pass
    def gradient(self, run):
        pass
    def step(self, run):
        self.count += 1
    @contextmanager
    def weights(self, run):
        yield
    def state_dict(self):
        return {"count": self.count}
    def load_state_dict(self, state):
        self.count = state["count"]
""",
    ),
    "federated": (
        ["federated._target_={}"],
        """
class Own(Federated):
    def among(self, hooks):
        return {**hooks, "federated": self}
    def start(self, run):
        pass
    def run(self, trainer):
        trainer.fit()
""",
    ),
    "augment": (
        ["+augment.own._target_={}"],
        """
class Own(Augment):
    def pixels(self, x, draw):
        return x
    def batch(self, batch, draw):
        return batch
""",
    ),
}
# (a line of the right class, what stands there instead, what is said): twelve of every seam


def write(folder: Path, seam: str, code: str) -> tuple[str, list[str], list[str]]:
    """Write a file with this class at the seam: its name, a command's words for a small run, and those of the class."""
    name = f"own_{abs(hash((seam, code))):x}"
    (folder / f"{name}.py").write_text(HEAD + textwrap.dedent(code))
    base = [word for word in BASE if seam != "model" or not word.startswith("model.")]
    return f"{name}.py", base, [word.format(f"{name}.Own") for word in RIGHT[seam][0]]
