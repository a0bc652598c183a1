"""What the benches train: models on made-up data of a known set's shape and size, so that they run anywhere."""

import copy
import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.nn import functional as F

from runner.command.build import locate
from runner.command.config import Train, check_all
from runner.core import distributed
from runner.dataset import Dataset, Split
from runner.engine.assemble import assemble, prepare
from runner.engine.trainer import Trainer
from runner.record.folder import Record
from tests.tiny import compose


@dataclass(frozen=True)
class Case:
    """One network at one batch size on one size of data."""

    name: str
    model: str
    shape: tuple[int, int, int]
    train: int  # samples
    test: int
    batch_size: int = 64
    epochs: int = 1
    classes: int = 10

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{self.name} on {size}, batch {self.batch_size}, {self.epochs} x {self.train:,} + {self.test:,} samples"

    @property
    def steps(self) -> int:
        return self.epochs * -(-self.train // self.batch_size)


MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
MLP = Case("mlp 784-128-10", "mlp", MNIST, 60_000, 10_000)
LENET = Case("lenet", "lenet", MNIST, 12_800, 2_000)
RESNET = Case("resnet20", "resnet20", CIFAR, 384, 128)


@lru_cache(maxsize=4)
def pixels(shape: tuple[int, ...], classes: int, samples: int, seed: int) -> Split:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (samples, *shape), dtype=torch.uint8, generator=generator)
    return Split(x, torch.randint(classes, (samples,), generator=generator))


class MadeUp(Dataset):
    """Random pixels and labels: what is measured does not depend on their values. For regression the labels are floats
    of one output, for "multilabel" one-hot. With `places` there is one for each, with `vocabulary` inputs are ids."""

    bounds = (0, 255)

    def __init__(
        self,
        train: int,
        test: int,
        shape: list[int],
        classes: int,
        task: str = "classes",
        places: list[int] = [],  # noqa: B006 (only read)
        vocabulary: int | None = None,
        **settings,
    ):
        self.task, self.places, self.vocabulary = task, tuple(places), vocabulary
        super().__init__(**settings)
        self.sizes, self.shape, self.classes = (train, test), tuple(shape), classes

    def load(self) -> tuple[Split, Split]:
        self.mean, self.std = torch.full((2, self.shape[0]), 127.5)
        train, test = (pixels(self.shape, self.classes, size, seed) for seed, size in enumerate(self.sizes))
        if self.places:
            parts = [(split, torch.Generator().manual_seed(seed)) for seed, split in enumerate((train, test))]
            size = self.places
            train, test = (
                Split(
                    x.base % self.vocabulary if self.vocabulary else x.base,
                    torch.randint(self.classes, (len(x), *size), generator=draw),
                )
                for x, draw in parts
            )
        if self.vocabulary is not None:
            self.bounds, self.mean, self.std = None, torch.zeros(1), torch.ones(1)
        if self.task == "multilabel":
            train, test = (split.labelled(F.one_hot(split.y, self.classes).float()) for split in (train, test))
        if self.task == "regression":
            train, test = (split.labelled(split.y / self.classes) for split in (train, test))
            self.classes = 1
        return train, test


def build(case: Case, *overrides: str, device: str, folder: Path) -> tuple[Trainer, dict]:
    """The trainer of `python -m runner *overrides` for this case, with the record that the command would keep; and its
    config. fp32 where the overrides do not say otherwise; labels are of the kind that the loss is defined for."""
    words = (f"model={case.model}", f"train.batch_size={case.batch_size}", f"train.epochs={case.epochs}")
    config = copy.deepcopy(compose(*words, f"device={device}", "train.precision=fp32", *overrides))
    task = locate(config["loss"]["_target_"], "loss").tasks[0]
    sizes = {"train": case.train, "test": case.test, "shape": list(case.shape), "classes": case.classes, "task": task}
    config["dataset"] = {"_target_": f"{__name__}.MadeUp", "val": 0.0, **sizes}
    check_all(config)
    train, where = Train(**config["train"]), distributed.device(device)
    prepare(config["seed"], train, where)
    trainer, *_ = assemble(config, train, where, Record(folder, []))
    trainer.tell = lambda *_: None
    return trainer, config


def now(device: str) -> float:
    """Seconds, after everything asked of the device is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


class Fit:
    """Our loop over whole epochs as the command runs it: evaluation, metrics.jsonl and checkpoints included."""

    def __init__(self, case: Case, device: str = "cpu", overrides: tuple[str, ...] = ()):
        self.case, self.device, self.overrides = case, device, overrides

    def __call__(self) -> float:
        """Seconds of one training from its start, building apart."""
        with TemporaryDirectory() as folder:
            trainer, config = build(self.case, *self.overrides, device=self.device, folder=Path(folder, "run"))
            with trainer.record:
                trainer.record.start(config, [], None)
                begin = now(self.device)
                trainer.fit()
                seconds = now(self.device) - begin
        self.line = trainer.last
        return seconds


class Steps:
    """Our steps alone, one after another over as many epochs as it takes, by the same trainer at every call."""

    def __init__(self, case: Case, steps: int, device: str = "cpu", overrides: tuple[str, ...] = ()):
        words = ("train.steps=1000000000", "train.drop_last=true", *overrides)  # of one size: compilation asks for it
        self.steps, self.device = steps, device
        self.trainer, _ = build(case, *words, device=device, folder=Path("unused"))
        self.trainer.model.train()
        self.batches = self.endless()

    def endless(self):
        for epoch in count():
            yield from self.trainer.loader.epoch(epoch)

    def __call__(self) -> float:
        """Seconds of `steps` steps."""
        begin = now(self.device)
        for batch in islice(self.batches, self.steps):
            self.trainer.step(batch)
        return now(self.device) - begin

    def close(self) -> None:
        self.batches.close()
