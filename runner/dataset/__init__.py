"""Data sets: what is loaded, how it is split, and how it is damaged on purpose."""

import hashlib
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from runner.core import keyed
from runner.core.schema import Count, Fraction, Natural, Range, When
from runner.dataset import check, damage

IGNORE = -100  # as torch and the Hugging Face libraries have it: a target that counts for nothing
Ratio = Annotated[float, Range(1)]
DRAWN = [When("noise", "none", but=True), When("subset", None, but=True), When("imbalance", 1, but=True)]
DamageSeed = Annotated[Natural | None, *DRAWN]


class Images(Protocol):
    """Images that are decoded when asked for, because they do not fit as one tensor."""

    def __len__(self) -> int: ...
    def select(self, index: Tensor) -> "Images": ...
    def get(self, i: int, seed: int | None) -> Tensor:
        """(C, H, W) uint8; `seed` drives random cropping in training and is None in evaluation."""


class Split:
    """N samples: raw inputs (uint8 pixels or floats, before normalisation) and targets.

    A part of a split refers to the whole one's inputs by row and copies none of them: the runs of a process, side by
    side or one after another, share one copy of a data set.

    Parameters
    ----------
    base : (M, *shape) inputs, or `Images`, which are decoded when asked for.
    y : (N,) int64 class ids, (N, C) multi-hot floats, (N,) floats, (N, T) int64 class ids of T tasks, or (N, *places).
    domain : (N,) int64, or None.
    rows : (N,) int64, where in `base` the samples are. None: N = M, in the order of `base`.
    """

    def __init__(self, base: "Tensor | Images", y: Tensor, domain: Tensor | None = None, rows: Tensor | None = None):
        self.base, self.y, self.domain, self.rows = base, y, domain, rows

    def __len__(self) -> int:
        return len(self.y)

    @property
    def x(self) -> "Tensor | Images":
        """(N, *shape) inputs: `base`, or a copy of the rows in question."""
        return self.base if self.rows is None else self.base.index_select(0, self.rows)

    def select(self, index: Tensor) -> "Split":
        """The samples at `index`, (M,) int64."""
        domain = None if self.domain is None else self.domain[index]
        if not isinstance(self.base, Tensor):
            return Split(self.base.select(index), self.y[index], domain)
        return Split(self.base, self.y[index], domain, index if self.rows is None else self.rows[index])

    def labelled(self, y: Tensor) -> "Split":
        """The same inputs with other targets."""
        return Split(self.base, y, self.domain, self.rows)

    def to(self, device: torch.device) -> "Split":
        """Tensors on the device; `Images` stay. Inputs are moved once for all splits that share them."""
        base = moved(self.base, device) if isinstance(self.base, Tensor) else self.base
        others = (None if tensor is None else tensor.to(device) for tensor in (self.y, self.domain, self.rows))
        return Split(base, *others)


_copies = WeakTensorKeyDictionary()  # inputs -> {device: their copy there}, for as long as somebody uses the inputs


def moved(inputs: Tensor, device: torch.device) -> Tensor:
    """The inputs on the device, copied there once in the life of the process."""
    if inputs.device == device:
        return inputs
    copies = _copies.setdefault(inputs, {})
    if device not in copies:
        copies[device] = inputs.to(device)
    return copies[device]


class Dataset:
    """Base of every data set. A data set of its own defines `load`; `prepare` does the rest, in this order:

    1. long tail: the training set is thinned to `imbalance`;
    2. subset: `subset` of what is left is kept, drawn without regard to the class;
    3. label noise: the labels of what is left are damaged;
    4. validation: a part is held out. It comes after the noise, so validation labels are as noisy as a practitioner's;
    5. bags: what is left for training is dealt into bags, of whose labels the mean alone is kept.

    The test split is never touched. Each draw has a generator of its own, so that, for example, another noise changes
    neither the subset nor the validation split. `Batch.index` of a training sample is its position in `train`.

    Parameters
    ----------
    val : part of the training set that is held out for validation. 0: none. Default 0.1.
    split_seed : which samples those are is drawn with it, so that all seeds share them. Default None: the run's seed.
    stratify : whether that part is taken of every class alike, to rounding. Default False.
    subset : training samples to keep, before validation is held out. Default None: all.
    noise : which labels a damaged sample gets.
        none : no damage.
        symmetric : any class, uniformly, the true one included.
        symmetric_other : any class but the true one, uniformly.
        pair : the next class, c -> c + 1 mod C.
        asymmetric : the class that `asymmetric` gives; classes that it leaves out keep their labels.
    noise_rate : probability that a label is redrawn. Default 0.
    asymmetric : class -> class for noise=asymmetric: the published map, where there is one.
    imbalance : largest class over smallest class of a long tail (Cui et al. 2019, arXiv:1901.05555; Cao et al. 2019,
        arXiv:1906.07413): class c of C keeps n_max * imbalance^(-c / (C - 1)) samples, rounded down. n_max is the
        largest number for which every class has enough: the class size of a balanced set. Default 1: every sample.
    bag_size : samples of a bag, for learning from label proportions: the target of every training sample is the mean of
        its bag, (C,) shares of the classes or one float. Sample i is in bag i // bag_size, the samples that do not fill
        a bag are left out, and an epoch visits bag after bag. Validation and test keep their labels; the training
        accuracy of a run counts the largest share. Default 1: none.
    damage_seed : drives long tail, subset and noise, but not the validation split. Default None: the run's seed.
    seed : the run's seed.

    Attributes
    ----------
    task : "classes", "multilabel", "regression", or "tasks": several class ids a sample, one for each of `tasks`
    classes : number of classes, or of outputs; of every task
    tasks : their names, which those of its measures begin with
    places : axes of the targets of one sample, of classes: (T,) of a text, (H, W) of an image; logits are then
        (B, T, C) or (B, H, W, C). A target may be IGNORE: it counts for nothing. Default (): one target a sample
    ignores : whether some are, which `prepare` finds out
    vocabulary : how many ids inputs are of, which a model embeds; None, the default: inputs are numbers, normalised
    per : what a risk takes for a sample, of targets with places: every target that counts, or the mean of a sample's
    first : the measure of those that chooses the best epoch. Default None: accuracy
    shape : of one input: (C, H, W) or (D,)
    bounds : lowest and highest value that any raw input can have, such as (0, 255) for 8-bit pixels; None, the default,
        where there is no such range for all of them, as in a table. What moves inputs goes by it.
    names : of the classes, where known
    train, val, test : splits; `val` is None where nothing is held out, and `test` where a run is not to measure it
    mean, std : float32 (C,) or (D,), in the units of the raw inputs
    record : plain facts about what was done
    notices : lines that a run says before its first step: what about these data may surprise
    """

    task: Literal["classes", "multilabel", "regression", "tasks"] = "classes"
    tasks: tuple[str, ...] = ()
    places: tuple[int, ...] = ()
    vocabulary: int | None = None
    ignores: bool = False
    per: Literal["target", "sample"] = "target"
    first: str | None = None
    classes: int
    shape: tuple[int, ...]
    bounds: tuple[float, float] | None = None
    names: list[str] | None = None
    train: Split
    val: Split | None
    test: Split | None
    mean: Tensor
    std: Tensor
    fingerprint: str | None = None  # of the data as loaded; never None once prepared
    record: dict

    def __init__(
        self,
        *,
        val: Fraction = 0.1,
        split_seed: Natural | None = None,
        stratify: bool = False,
        subset: Count | None = None,
        noise: Literal["none", "symmetric", "symmetric_other", "pair", "asymmetric"] = "none",
        noise_rate: Fraction = 0.0,
        asymmetric: Annotated[dict[int, int] | None, When("noise", "asymmetric")] = None,
        imbalance: Ratio = 1.0,
        bag_size: Count = 1,
        damage_seed: DamageSeed = None,
        seed: int = 0,
    ):
        if noise == "none" and noise_rate > 0:
            raise ValueError(
                f"dataset.noise_rate={noise_rate:g} needs a kind of noise, such as dataset.noise=symmetric"
            )
        if noise == "asymmetric" and not asymmetric:
            raise ValueError("no published class map for dataset.noise=asymmetric here: use dataset.noise=pair")
        for setting, used in (("noise", noise != "none"), ("imbalance", imbalance > 1), ("stratify", stratify)):
            if used and self.task != "classes":
                raise ValueError(f"dataset.{setting} is defined for classes only, and this data set is {self.task}")
        if bag_size > 1 and self.task == "tasks":
            raise ValueError("dataset.bag_size is not defined for several tasks, and this data set has them")
        self.val_fraction, self.subset, self.imbalance, self.bag_size = val, subset, imbalance, bag_size
        self.noise, self.noise_rate, self.asymmetric = noise, noise_rate, asymmetric
        self.notices: list[str] = []
        if noise != "none" and noise_rate == 0:
            self.notices.append(f"dataset.noise={noise} changes no label, as dataset.noise_rate is 0")
        self.split_seed, self.stratify = seed if split_seed is None else split_seed, stratify
        self.seed = seed
        self.damage_seed = seed if damage_seed is None else damage_seed

    def load(self) -> tuple[Split, Split]:
        """The whole training and test split; sets classes, shape, mean, std and, where known, names and fingerprint,
        which is otherwise made of the values."""
        raise NotImplementedError

    def judge(self, samples: Tensor) -> dict[str, float]:
        """Measures of made-up inputs, (N, *shape) in raw units, by what is known of the distribution of true ones.
        Default: none."""
        return {}

    @property
    def local(self) -> bool:
        """Whether `load` finds everything on this machine, and asks nobody else."""
        return True

    def prepare(self) -> None:
        """Loads, damages and splits.

        Raises ValueError where a setting does not fit the data, or where the data is not to be found, or is not what
        it is declared to be: see `runner.dataset.check`.
        """
        train, self.test = check.loaded(self)
        self.ignores = any(bool((split.y == IGNORE).any()) for split in (train, self.test)) if self.places else False
        damaged = {"noise": self.noise != "none", "imbalance": self.imbalance > 1, "bag_size": self.bag_size > 1}
        damaged |= {"stratify": self.stratify}
        for setting in (setting for setting, used in damaged.items() if used and self.places):
            raise ValueError(f"dataset.{setting} goes by one class id a sample, and this data set has several")
        if self.fingerprint is None:
            self.fingerprint = contents(train, self.test)
        facts = {"classes": self.classes, "shape": list(self.shape), "fingerprint": self.fingerprint}
        if self.imbalance > 1:
            draw = keyed.generator(self.damage_seed, "long tail")
            train = train.select(damage.long_tail(train.y, self.classes, self.imbalance, draw))
            kept = torch.bincount(train.y, minlength=self.classes)
            facts["imbalance"] = {"asked": self.imbalance, "realised": (kept.max() / kept.min()).item()}
        if self.subset is not None:
            if self.subset > len(train):
                raise ValueError(
                    f"dataset.subset={self.subset} is more than the {len(train)} training samples there are"
                )
            draw = keyed.generator(self.damage_seed, "subset").permutation(len(train))
            train = train.select(torch.from_numpy(np.sort(draw[: self.subset])))
        clean = train.y
        if self.noise != "none":
            draw = keyed.generator(self.damage_seed, "label noise")
            noisy = damage.KINDS[self.noise](clean, self.classes, self.noise_rate, draw, self.asymmetric)
            train = train.labelled(noisy)
        kept, held = self._hold_out(len(train), train.y)
        if self.noise != "none":
            changed = clean != train.y
            facts["noise"] = {
                "kind": self.noise,
                "asked": self.noise_rate,
                "realised": changed.double().mean().item(),  # over training and validation part together
                "changed": int(changed.sum()),
                "changed_train": int(changed[kept].sum()),
                "changed_val": int(changed[held].sum()),
            }
        self.train, self.val = (train.select(kept), train.select(held)) if len(held) else (train, None)
        if self.bag_size > 1:
            self.train = self._in_bags(self.train)
        facts |= {"train": len(self.train), "val": len(held), "test": len(self.test)}
        facts |= {"class_counts": self.class_counts, "damage_seed": self.damage_seed}
        self.record = facts
        self.notices += check.absent(self)

    def _hold_out(self, samples: int, y: Tensor) -> tuple[Tensor, Tensor]:
        """Rows for training and for validation. Of the same seed a smaller validation split is within a larger one."""
        count = round(self.val_fraction * samples)
        if count == samples or (count == 0 and self.val_fraction > 0):
            part = "training" if count else "validation"
            raise ValueError(f"dataset.val={self.val_fraction:g} of {samples} samples leaves no {part} sample")
        order = keyed.generator(self.split_seed, "validation").permutation(samples)
        held = np.zeros(samples, dtype=bool)
        if self.stratify:
            labels = y.numpy()[order]
            for label in np.unique(labels):
                own = order[labels == label]
                held[own[: round(self.val_fraction * len(own))]] = True
        else:
            held[order[:count]] = True
        return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))

    def _in_bags(self, split: Split) -> Split:
        bags = len(split) // self.bag_size
        if bags == 0:
            raise ValueError(
                f"dataset.bag_size={self.bag_size} is more than the {len(split)} training samples there are"
            )
        order = keyed.generator(self.seed, "bags").permutation(len(split))[: bags * self.bag_size]
        split = split.select(torch.from_numpy(order))
        y = F.one_hot(split.y, self.classes) if self.task == "classes" else split.y
        mean = y.float().unflatten(0, (bags, self.bag_size)).mean(1)
        return split.labelled(mean.repeat_interleave(self.bag_size, 0))

    @property
    def class_counts(self) -> list[int] | None:
        """Samples of each class in the training part, as labelled; None where the targets are not class ids."""
        if self.task != "classes":
            return None
        if self.bag_size > 1:
            return self.train.y.double().sum(0).round().long().tolist()
        y = self.train.y
        return torch.bincount(y[y != IGNORE] if self.places else y, minlength=self.classes).tolist()

    @property
    def context(self) -> dict:
        """What models, losses and augmentations may ask for by name."""
        return {
            "shape": self.shape,
            "bounds": self.bounds,
            "classes": self.classes,
            "vocabulary": self.vocabulary,
            "heads": len(self.tasks) or None,
            "samples": len(self.train),
            "class_counts": self.class_counts,
            "bag": self.bag_size,
        }


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel of (N, C, ...), over all samples and places, float32 (C,)."""
    total = torch.zeros(2, x.shape[1], dtype=torch.float64)
    for part in x.split(1000):
        part = part.double().transpose(0, 1).flatten(1)
        total += torch.stack([part.sum(1), part.square().sum(1)])
    mean, square = total / (x.numel() // x.shape[1])
    return mean.float(), (square - mean.square()).clamp(min=0).sqrt().float()


def fingerprint(*tensors: Tensor) -> str:
    """SHA-256 over the values, in hex."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def contents(*splits: Split) -> str:
    """The fingerprint of a data set that has none of its own: of inputs, targets and domains as loaded; of `Images`
    sixteen of every split, evenly spaced, as decoding all of them at every start would take too long."""
    found = []
    for split in splits:
        inputs = [split.x]
        if not isinstance(split.base, Tensor):
            inputs = [split.base.get(int(i), None) for i in torch.linspace(0, len(split) - 1, 16).long().unique()]
        found += [*inputs, split.y, *([] if split.domain is None else [split.domain])]
    return fingerprint(*found)


def fixed_test(y: Tensor, purpose: str) -> tuple[Tensor, Tensor]:
    """Indices (training, test) for a set that comes without a test split: a fifth of every class.

    The same for every seed. y: (N,) class ids. `purpose` names the draw.
    """
    draw = keyed.generator(0, purpose)
    test = np.zeros(len(y), dtype=bool)
    for label in range(int(y.max()) + 1):
        where = draw.permutation(np.flatnonzero(y.numpy() == label))
        test[where[: round(len(where) / 5)]] = True
    return torch.from_numpy(np.flatnonzero(~test)), torch.from_numpy(np.flatnonzero(test))
