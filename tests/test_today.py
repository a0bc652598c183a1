"""Ten runs as they were when tests/reference/today.json was written: ids, what a checkpoint holds, and the numbers.

What is added to the engine must leave them as they are. In float64, as bits differ between processors; written anew by
`python -m tests.test_today` where a change of a run's numbers is wanted, and then the commit says why.
"""

import json

import pytest
import torch

from runner.record.identity import identity
from tests.conftest import ROOT
from tests.test_compose import updates
from tests.tiny import compose, trainer

PATH = ROOT / "tests" / "reference" / "today.json"
TINY = ["dataset.subset=48", "dataset.val=0.25", "train.batch_size=10", "train.steps=4", "device=cpu"]
MLP = ["model.hidden=[12]"]
CLIENTS = ["federated.clients=3", "federated.rounds=2", "federated.minimum=2"]
RUNS = {
    "default": MLP,
    "sam": [*MLP, "optim=sam", "loss=poly", "hook=[ema,clip]", "sharpness.m=4"],
    "asam": [*MLP, "sharpness=asam", "optim=adamw", "schedule=linear", "train.accumulate=2"],
    "memory": [*MLP, "loss=elr", "risk=top_k", "dataset.noise=symmetric", "dataset.noise_rate=0.3"],
    "convolutions": ["model=cnn", "model.widths=[4,8]", "model.hidden=16", "augment=[crop_flip,mixup]"],
    "residual": ["model=resnet20", "model.depth=8", "loss=focal", "optim=adam"],
    "dropout": ["model=wrn_16_8", "model.depth=10", "model.widen=1", "model.dropout=0.3", "optim=sam"],
    "quantized": ["model.hidden=[12,12]", "quantization=lsq", "optim=sam"],
    "federation": [*MLP, "federated=scaffold", *CLIENTS],
    "regression": [*MLP, "dataset=diabetes", "loss=huber", "hook=spectral_decoupling"],
}


def held(state, where: str = "") -> list[str]:
    """Every entry of a checkpoint with what it is."""
    if isinstance(state, dict):
        return [line for key in sorted(state, key=str) for line in held(state[key], f"{where}.{key}")]
    if isinstance(state, list | tuple):
        return [line for number, entry in enumerate(state) for line in held(entry, f"{where}[{number}]")]
    if isinstance(state, torch.Tensor):
        return [f"{where} {str(state.dtype).removeprefix('torch.')} {list(state.shape)}"]
    return [f"{where} {type(state).__name__}"]


def found(name: str) -> dict:
    words = [*TINY, *RUNS[name]]
    run = trainer(*words, double=True)
    start = run.weights.data.norm().item()
    moved = []
    for _ in updates(run, 2 if "federated" in run.hooks.named else 4):
        moved.append(run.weights.data.norm().item())
    spread = (run.weights.data * torch.linspace(-1, 1, run.weights.data.numel(), dtype=torch.float64)).sum().item()
    numbers = [start, *moved, spread, run.loss_sum.item()]
    return {"id": identity(compose(*words)), "numbers": numbers, "checkpoint": held(run.state_dict())}


@pytest.mark.parametrize("name", RUNS)
def test_it_is_the_run_that_it_was(name):
    then, now = json.loads(PATH.read_text())[name], found(name)
    assert now["id"] == then["id"]
    assert now["checkpoint"] == then["checkpoint"]
    assert now["numbers"] == pytest.approx(then["numbers"], rel=1e-9)


if __name__ == "__main__":
    torch.set_num_threads(1)
    PATH.write_text(json.dumps({name: found(name) for name in RUNS}, indent=1) + "\n")
