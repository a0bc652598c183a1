"""Steps with groups, Muon, looks at the loss, without backpropagation, in turn and of views, over plain ones."""

import torch
from torch import Tensor, nn

from runner.core.batch import Batch, Output
from runner.loss.ce import CrossEntropy
from runner.optim import loss_of, with_gradients
from scripts.bench import compare
from scripts.bench.cases import LENET, MLP, RESNET, Steps

TITLE = "What other ways to make a step cost"
ABOUT = """\
Steps of SGD with momentum and decay, and the same with groups=no_decay (two slices instead of one), with optim=muon,
with an optimizer that also asks for the loss after its step (value), one that asks for a product of the Hessian with
its gradient (hvp), with gradient=forward, with a loss that has a second player of one linear layer and of which model
and player step in turn (turns), or both at once (together), and with loss=ntxent, which encodes two views of every
sample and projects them (views). The ratio is the time of the step over that of plain SGD."""
PACKAGES = ()
CASES = {MLP: 40, LENET: 5, RESNET: 1}  # steps in a measurement


class Looking(torch.optim.Optimizer):
    """Gradient descent that asks for something and does not go by it."""

    flat = looks = True
    what = "value"

    def __init__(self, params, lr: float = 1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        loss, grads = loss_of(closure), [w.grad for _, w in with_gradients(self)]
        if self.what == "hvp":
            closure.hvp(grads)
        for group, w in with_gradients(self):
            w.sub_(w.grad, alpha=group["lr"])
        if self.what == "value":
            closure.value()
        return loss


class Curved(Looking):
    what = "hvp"


class Together(CrossEntropy):
    """Cross-entropy, and a judge of the features that is trained with it."""

    def __init__(self, features: int):
        super().__init__()
        self.judge = nn.Linear(features, 1)

    def forward(self, out: Output, batch: Batch) -> Tensor:
        own = self.judge(out.features.detach()).squeeze(-1).square()
        return own if self.turn == "judge" else super().forward(out, batch) + (0.0 if self.turns else own)


class Turns(Together):
    turns = {"judge": 1, "model": 1}  # noqa: RUF012 (only read)


def own(kind: str) -> tuple[str, ...]:
    keys = ("momentum", "weight_decay", "dampening", "nesterov")
    return f"optim._target_=scripts.bench.optim.{kind}", *(f"~optim.{key}" for key in keys)


ARMS = {
    "two groups": ("groups=no_decay",),
    "muon": ("optim=muon",),
    "value": own("Looking"),
    "hvp": own("Curved"),
    "forward": ("gradient=forward", "optim.lr=1e-4"),  # its variance is that of 100,000 weights
    "turns": ("loss._target_=scripts.bench.optim.Turns", "~loss.label_smoothing"),
    "together": ("loss._target_=scripts.bench.optim.Together", "~loss.label_smoothing"),
    "views": ("loss=ntxent",),
}
MOST = {"two groups": 1.2, "muon": 1.5, "hvp": 4.0}


def measure(threads: int = 1, cases: dict = CASES, rounds: tuple = (5, 4)) -> compare.Found:
    rows, notes = [], []
    for case, steps in cases.items():
        arms = {name: (Steps, case, steps, "cpu", words) for name, words in {"sgd": (), **ARMS}.items()}
        found = compare.several(case, arms, MOST, rounds, steps, threads)
        rows += found[0]
        notes += found[1]
    return rows, notes
