"""The loop that somebody writes by hand for one experiment: what ours is measured against.

Nothing in it can be exchanged, resumed or checked; the work is the same: gather and normalise on the device, a step
of SGD with momentum and weight decay at a cosine learning rate, the sums of training loss and accuracy, and at the end
of every epoch the same measures on the same test split, one line of JSON, the last state and the best weights on disk.
"""

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.command.build import build
from runner.core.measure import measures
from scripts.bench.cases import Case, now, pixels
from tests.tiny import compose


class Data:
    """Training and test pixels on the device; iterating is one epoch of training batches."""

    def __init__(self, case: Case, device: str):
        train, test = (pixels(case.shape, case.classes, n, seed) for seed, n in enumerate((case.train, case.test)))
        self.x, self.y, self.test_x, self.test_y = (t.to(device) for t in (train.x, train.y, test.x, test.y))
        self.mean, self.std = torch.full((2, case.shape[0], 1, 1), 127.5, device=device)
        self.batch_size = case.batch_size

    def __len__(self) -> int:
        return -(-len(self.x) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), device=self.x.device)
        for index in order.split(self.batch_size):
            yield self.normalise(self.x.index_select(0, index)), self.y[index]

    def tests(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in zip(self.test_x.split(1000), self.test_y.split(1000), strict=True):
            yield self.normalise(x), y

    def normalise(self, x: Tensor) -> Tensor:
        return x.float().sub_(self.mean).div_(self.std)


def network(case: Case, words: tuple[str, ...] = ()) -> nn.Module:
    """The option's layers, without what the engine asks of a model."""
    model = build(compose(f"model={case.model}", *words)["model"], "model", shape=case.shape, classes=case.classes)
    return nn.Sequential(model.body, model.head)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, autocast=nullcontext):
    """A step; the loss and the logits before it."""
    with autocast():
        logits = model(x)
        loss = F.cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss, logits


def train(model: nn.Module, data: Data, epochs: int, folder: Path, autocast=nullcontext) -> dict:
    """Train and return the last epoch's line."""
    device = data.x.device
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    step, steps, best = 0, epochs * len(data), -1.0
    for epoch in range(epochs):
        model.train()
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        for x, y in data:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * (1 + math.cos(math.pi * step / steps)) / 2
            loss, logits = update(model, optimizer, x, y, autocast)
            loss_sum += loss.detach() * len(x)
            correct += (logits.detach().argmax(-1) == y).sum()
            step += 1
        model.eval()
        with torch.no_grad(), autocast():
            outs = [(model(x), y) for x, y in data.tests()]
        logits, y = (torch.cat(parts) for parts in zip(*outs, strict=True))
        found = measures(logits.float(), y, "classes")
        line = {
            "epoch": epoch,
            "train_loss": loss_sum.item() / len(data.x),
            "train_accuracy": correct.item() / len(data.x),
        }
        line |= {f"test_{key}": value for key, value in found.items()}
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        if found["accuracy"] > best:
            best = found["accuracy"]
            torch.save(model.state_dict(), folder / "best.pt")
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, folder / "last.pt")
    return line


class ByHand:
    """The hand-written loop over whole epochs."""

    def __init__(self, case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32):
        self.case, self.device, self.data = case, device, Data(case, device)
        half = dtype != torch.float32
        self.autocast = (lambda: torch.autocast(torch.device(device).type, dtype=dtype)) if half else nullcontext

    def __call__(self) -> float:
        """Seconds of one training from its start, building apart."""
        torch.manual_seed(0)
        model = network(self.case).to(self.device)
        with TemporaryDirectory() as folder:
            begin = now(self.device)
            self.line = train(model, self.data, self.case.epochs, Path(folder), self.autocast)
            return now(self.device) - begin


class HandSteps:
    """Steps alone, over as many epochs as it takes: what `cases.Steps` is of our loop."""

    def __init__(self, case: Case, steps: int, optimizer: str = "SGD", words: tuple[str, ...] = ()):
        self.steps, self.data = steps, Data(case, "cpu")
        self.model = network(case, words)
        self.optimizer = getattr(torch.optim, optimizer)(self.model.parameters(), lr=1e-3)
        self.batches = self.endless()

    def endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.data

    def __call__(self) -> float:
        """Seconds of `steps` steps."""
        begin = now("cpu")
        for x, y in islice(self.batches, self.steps):
            update(self.model, self.optimizer, x, y)
        return now("cpu") - begin
