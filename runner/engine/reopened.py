"""A finished run, opened again: measured without training, on its own data or others, and its predictions in a file.

    python -m runner.evaluate outputs/NAME/ID [dataset=... dataset.key=value data_dir=...] [--weights best_val]
                              [--split val,test] [--predictions] [--device cpu]

The measures go into the run's folder, as evaluation-<data>-<weights>.json, and the predictions beside them as
predictions-<data>-<weights>.parquet: for every sample its split, row, target and logits. Other data are normalised as
those were that the run was trained on. The run's own files stay as they are.
"""

import argparse
import hashlib
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from runner.command.build import build
from runner.command.compose import compose
from runner.command.config import Train, sources
from runner.core import checkpoint, distributed
from runner.core.mistake import ConfigError
from runner.core.output import near, unbreakable
from runner.dataset import Dataset
from runner.engine.final import loaded
from runner.engine.trainer import Trainer
from runner.record.files import finished, read_config, write_json
from runner.record.lines import shown

OF_DATA = ("dataset", "data_dir", "cache_dir")
SPLITS = ("train", "val", "test")


def opened(folder: Path, device: str = "cpu", more: dict | None = None) -> tuple[Trainer, tuple]:
    """A run with the state of its last.pt, in fp32, and what else assembling gives: federated, transform, calibration.

    more : keys of the top level of its config that are to be others, such as data_dir. Nothing is written.
    """
    from runner.engine.assemble import Elsewhere, assemble, prepare

    config = read_config(folder) | {"checkpoint": None} | (more or {})
    train = Train(**config["train"] | {"precision": "fp32", "compile": False, "keep": "none"})
    where = distributed.device(device)
    prepare(config["seed"], train, where)
    trainer, *rest = assemble(config, train, where, Elsewhere(folder))
    trainer.load_state_dict(checkpoint.load(folder / "last.pt"))
    return trainer, tuple(rest)


def evaluate(
    folder: Path,
    words: list[str] = (),
    weights: str = "last",
    splits: list[str] = ("val", "test"),
    predictions: bool = False,
    device: str = "cpu",
) -> tuple[Path, dict]:
    """Measure a finished run; returns the file that was written, and the measures, each after its split.

    words : as typed, of the data. weights : last, as evaluated, with the averages of hooks; best_val, best_test, or
    step_<n>.

    Raises ConfigError or ValueError where there is no such run, or where these data are not of the kind that its model
    takes.
    """
    if finished(folder) is None:
        raise ConfigError(f"{folder} is no finished run")
    for word in words:
        if word.partition("=")[0].partition(".")[0] not in OF_DATA:
            raise ConfigError(f"'{word}': of a finished run the data can be others: {', '.join(OF_DATA)}")
    own = {key: value for key, _, value in (word.partition("=") for word in words) if key in ("data_dir", "cache_dir")}
    run, _ = opened(folder, device, own)
    config = read_config(folder) | own
    data, name = run.dataset, config["choices"]["dataset"]
    if any(word.startswith("dataset") for word in words):
        data, name = others(run.dataset, config, [word for word in words if word.startswith("dataset")])
    state = None if weights == "last" else _state(folder, weights)
    found, kept = {}, {}
    with nullcontext() if state is None else loaded(run, state):
        for split in splits:
            if (part := getattr(data, split)) is None:
                continue
            run.dataset = data
            measured = run.evaluate(part) if state is None else run.loss.evaluate(run, part)
            found |= {f"{split}_{key}": value for key, value in measured.items()}
            if predictions:
                kept[split] = run.predict(part) if state is None else run.predict_as_is(part)
    if not found:
        raise ConfigError(f"{folder}: there is no split {' or '.join(splits)}")
    if own_words := [word for word in words if word != f"dataset={name}"]:  # a name that nothing else has
        name += f"-{hashlib.sha256(' '.join(own_words).encode()).hexdigest()[:6]}"
    path = folder / f"evaluation-{name}-{weights}.json"
    sizes = {split: len(getattr(data, split)) for split in splits if getattr(data, split) is not None}
    facts = {"weights": weights, "dataset": name, "typed": list(words), "fingerprint": data.fingerprint}
    write_json(path, facts | {"samples": sizes, "measures": found})
    if predictions:
        write(folder / f"predictions-{name}-{weights}.parquet", kept)
    return path, found


def others(own: Dataset, config: dict, words: list[str]) -> tuple[Dataset, str]:
    """Another data set, prepared, and its name. Raises ConfigError where a run on `own` cannot take it."""
    chosen = next((word.partition("=")[2] for word in words if word.startswith("dataset=")), None)
    name = chosen or config["choices"]["dataset"]
    node = compose(*([] if chosen else [f"dataset={name}"]), *words)["dataset"]
    data = build(node, "dataset", seed=config["seed"], **sources(config))
    try:
        data.prepare()
    except ValueError as error:
        raise ConfigError(f"dataset: {error}") from error
    for what in ("task", "shape", "classes", "places", "vocabulary"):
        here, there = getattr(own, what), getattr(data, what)
        if here != there:
            raise ConfigError(f"dataset={name}: its {what} is {there}, and the run was trained on {here}")
    data.mean, data.std = own.mean, own.std
    return data, name


def _state(folder: Path, weights: str) -> dict:
    path = folder / f"{weights}.pt"
    if not path.exists():
        there = sorted(one.stem for one in folder.glob("*.pt") if one.stem.startswith(("best_", "step_")))
        raise ConfigError(f"{path} is missing; there are: {', '.join(['last', *there])}")
    return checkpoint.load(path)


# ---- predictions


def write(path: Path, kept: dict[str, tuple[Tensor, Tensor]]) -> None:
    """A parquet file with a line for each sample: split, row, target, logits."""
    import pyarrow
    from pyarrow import parquet

    columns = {"split": [], "row": [], "target": [], "logits": []}
    for split, (logits, y) in kept.items():
        columns["split"] += [split] * len(y)
        columns["row"] += range(len(y))
        columns["target"] += y.tolist()
        columns["logits"] += logits.float().tolist()
    scratch = path.with_name(f".{path.name}.tmp")
    parquet.write_table(pyarrow.table(columns), scratch)
    scratch.replace(path)


def read(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """What `write` wrote: split -> logits and targets, in the order of the split."""
    from pyarrow import parquet

    columns, found = parquet.read_table(path).to_pydict(), {}
    for split in dict.fromkeys(columns["split"]):
        rows = [i for i, own in enumerate(columns["split"]) if own == split]
        found[split] = tuple(torch.tensor([columns[key][i] for i in rows]) for key in ("logits", "target"))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m runner.evaluate", description="Measure a finished run without training."
    )
    parser.add_argument("folder", type=Path, help="outputs/NAME/ID")
    parser.add_argument("words", nargs="*", metavar="key=value", help="other data: dataset=svhn dataset.val=0")
    parser.add_argument("--weights", default="last", help="last, best_val, best_test or step_<n>; default last")
    parser.add_argument("--split", default="val,test", help="of train, val, test; default val,test")
    parser.add_argument("--predictions", action="store_true", help="also write every sample's logits")
    parser.add_argument("--device", default="cpu", help="default cpu")
    parser.error = lambda message: parser.exit(2, f"runner: {message}\n")
    given = parser.parse_intermixed_args(arguments)
    splits = given.split.split(",")
    if wrong := [split for split in splits if split not in SPLITS]:
        parser.error(f"--split {wrong[0]}: must be of {', '.join(SPLITS)}")
    try:
        path, found = evaluate(given.folder, given.words, given.weights, splits, given.predictions, given.device)
    except (ConfigError, ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    with unbreakable():
        for key, value in found.items():
            print(f"{key:<24} {'null' if value is None else shown(key, value)}")
        print(near(path))
    return 0
