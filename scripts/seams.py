"""Every seam of the engine under every condition of a run, tried: it works, or is refused in one line."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from runner.core import checkpoint
from runner.core.mistake import ConfigError
from runner.engine.replicas import Replicas, Unpackable
from tests.tiny import trainer

FEW = ["dataset.subset=40", "dataset.val=0", "train.batch_size=10", "device=cpu"]
MLP = [*FEW, "model.hidden=[12,12]"]
MASKS = ["dataset=digit_masks", "dataset.subset=20", "dataset.val=0", "train.batch_size=5", "model=unet", "device=cpu"]
POINTS = ["dataset=gaussians25", "dataset.size=40", *FEW[1:], "model=mlp_generator", "model.hidden=[8]"]
LOOKS = ["optim._target_=scripts.bench.optim.Curved", "~optim.momentum", "~optim.weight_decay", "~optim.dampening"]
SEAMS = {  # what stands for a seam, and the words of a small run with it
    "samplers (`sampler=balanced`)": [*MLP, "sampler=balanced", "dataset.imbalance=2"],
    "views (`loss=ntxent`)": [*MLP, "loss=ntxent", "loss.out=8", "augment=simclr"],
    "places (`dataset=digit_masks`)": [*MASKS, "model.width=4", "model.levels=2"],
    "objectives (`balance=upgrad`)": [*MLP, "dataset=multi_mnist", "dataset.source=digits", "balance=upgrad"],
    "draws (`loss=diffusion`)": [*FEW, "loss=diffusion", "model=mlp_time", "model.width=8", "model.depth=1"],
    "players (`loss=wgan_gp`)": [*POINTS, "loss=wgan_gp", "loss.hidden=[8]", "loss.critic_turns=2", "optim=adam"],
    "transforms (`transform=lora`)": [*MLP, "transform=lora"],
    "weight maps (`transform=magnitude`)": [*MLP, "transform=magnitude", "transform.magnitude.every=1"],
    "roles and groups (`optim=muon groups=no_decay`)": [*MLP, "optim=muon", "groups=no_decay"],
    "looks (an optimizer with `closure.hvp`)": [*MLP, *LOOKS, "~optim.nesterov"],
    "gradients (`gradient=forward`)": [*MLP, "gradient=forward", "optim.lr=1e-3"],
}


def stepped(run, count: int) -> None:
    """So many steps, each of which leaves weights that are numbers."""
    while run.count < count:
        for batch in run.loader.epoch(*divmod(run.count, run.steps_per_epoch)):
            run.step(batch)
            assert torch.isfinite(run.weights.data).all()
            if run.count == count:
                break


def trains(*more: str) -> Callable[[list[str]], None]:
    def check(words: list[str]) -> None:
        run = trainer(*words, *more)
        before = run.weights.clone()
        stepped(run, 3)
        assert not torch.equal(before, run.weights.data)

    return check


def overflows(words: list[str]) -> None:
    run = trainer(*words, "train.precision=fp16")
    before, run.precision.scale.value = run.weights.clone(), float("inf")
    assert run.step(next(iter(run.loader.epoch(0)))) is None and torch.equal(before, run.weights.data)
    run.precision.scale.value = 4.0
    stepped(run, 3)
    assert not torch.equal(before, run.weights.data)


def resumes(words: list[str]) -> None:
    whole, part, rest = (trainer(*words) for _ in range(3))
    stepped(whole, 6)
    stepped(part, 3)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(part.state_dict(), Path(folder, "last.pt"))
        rest.load_state_dict(checkpoint.load(Path(folder, "last.pt")))
    stepped(rest, 6)
    assert torch.equal(whole.weights.data, rest.weights.data)


def packs(words: list[str]) -> None:
    alone, members = ([trainer(*words, f"seed={seed}", double=True) for seed in range(2)] for _ in range(2))
    pack = Replicas(members)
    for run in (pack, *alone):
        stepped(run, 3)
    for row, one in zip(pack.weights.data, alone, strict=True):
        torch.testing.assert_close(row, one.weights.data, rtol=1e-7, atol=1e-9)


def federates(words: list[str]) -> None:
    run = trainer(*words, "federated=fedavg", "federated.clients=2", "federated.rounds=1", "federated.minimum=2")
    before = run.weights.clone()
    for _ in run.hooks.named["federated"].one_round(run, 0):
        pass
    assert torch.isfinite(run.weights.data).all() and not torch.equal(before, run.weights.data)


CONDITIONS = {
    "SAM": trains("sharpness=sam"),
    "m": trains("sharpness=sam", "sharpness.m=5"),
    "micro-batches": trains("train.accumulate=2"),
    "bf16": trains("train.precision=bf16"),
    "fp16, an overflow": overflows,
    "resumed": resumes,
    "packs": packs,
    "clients": federates,
    "quantized": trains("quantization=lsq"),
}


def cell(seam: str, condition: str) -> str:
    """ "works", or what the run is refused with."""
    try:
        CONDITIONS[condition](SEAMS[seam])
    except (ConfigError, Unpackable) as error:
        return str(error)
    return "works"


def row(seam: str) -> list[str]:
    """The lines of the table that are this seam's."""
    found = {condition: cell(seam, condition) for condition in CONDITIONS}
    works = ", ".join(condition for condition, what in found.items() if what == "works")
    refused = [f"  - {condition}: {what}" for condition, what in found.items() if what != "works"]
    return [f"- {seam}: {works}", *refused]


def table() -> list[str]:
    return [line for seam in SEAMS for line in row(seam)]
