"""Federations for the tests of this room, small enough to be run in a second."""

import torch
from torch.nn import functional as F

from runner.command.listing import conf_dir, options
from tests.tiny import trainer

ALGORITHMS = [name for name in options("federated", [conf_dir()]) if name != "none"]

DATA = ["device=cpu", "dataset.subset=240", "model.hidden=[12]", "schedule=constant"]

SKEWED = [*DATA, "federated.partition=dirichlet", "federated.alpha=0.4", "federated.clients=6", "train.batch_size=16"]


def federation(*words: str, double: bool = True):
    """(trainer, algorithm), begun: nothing is written."""
    run = trainer(*words, double=double)
    algorithm = run.hooks.named["federated"]
    run.weights.copy_(algorithm.weights.data)
    return run, algorithm


def rounds(run, algorithm, count: int | None = None) -> None:
    for _ in range(algorithm.rounds if count is None else count):
        for _ in algorithm.one_round(run, run.count):
            pass


def local(model, x, y, lr, steps, correct=lambda parameters: None):
    """Plain full-batch gradient descent on the mean cross-entropy."""
    for _ in range(steps):
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        add = correct(list(model.parameters()))
        with torch.no_grad():
            for i, (parameter, grad) in enumerate(zip(model.parameters(), grads, strict=True)):
                parameter -= lr * (grad + (0 if add is None else add[i]))
    return [parameter.detach().clone() for parameter in model.parameters()]


def plain(kind, start, data, rounds, lr, steps, mu=0.1, uniform=False, server_lr=1.0):
    """The weights after some rounds. steps: of every client. data: (x, y) of every client."""
    d = start[0].shape[1]
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(d, 12), torch.nn.ReLU(), torch.nn.Linear(12, 10)
    ).double()
    w = [tensor.clone() for tensor in start]
    c = [torch.zeros_like(tensor) for tensor in w]
    own = [[torch.zeros_like(tensor) for tensor in w] for _ in data]
    sizes = [1.0 if uniform else float(len(y)) for _, y in data]
    p = [size / sum(sizes) for size in sizes]
    for _ in range(rounds):
        ends = []
        for k, (x, y) in enumerate(data):
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), w, strict=True):
                    parameter.copy_(value)
            correct = {
                "fedprox": lambda now, w=w: [mu * (a.detach() - b) for a, b in zip(now, w, strict=True)],
                "scaffold": lambda now, own=own[k], c=c: [a - b for a, b in zip(c, own, strict=True)],
            }.get(kind, lambda now: None)
            ends.append(local(model, x, y, lr, steps[k], correct))
        if kind == "scaffold":
            news = [
                [ck - cg + (a - b) / (steps[k] * lr) for ck, cg, a, b in zip(own[k], c, w, ends[k], strict=True)]
                for k in range(len(data))
            ]
            c = [
                cg + sum(new[i] - o[i] for new, o in zip(news, own, strict=True)) / len(data) for i, cg in enumerate(c)
            ]
            own = news
        if kind == "fednova":
            tau = sum(pk * s for pk, s in zip(p, steps, strict=True))
            w = [a + tau * sum(p[k] * (ends[k][i] - a) / steps[k] for k in range(len(data))) for i, a in enumerate(w)]
        else:
            w = [a + server_lr * sum(p[k] * (ends[k][i] - a) for k in range(len(data))) for i, a in enumerate(w)]
    return w


NORMED = ["model=resnet20", "model.depth=8", "dataset.subset=70", "augment=crop_flip", "train.batch_size=16"]
