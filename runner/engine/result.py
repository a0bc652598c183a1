"""What a run says before its first step and after its last, and what result.json holds."""

from datetime import datetime
from pathlib import Path

from runner.command.config import LISTS, SINGLES
from runner.command.errors import defaults
from runner.command.listing import conf_dir
from runner.core import distributed, output
from runner.engine.final import Final
from runner.engine.trainer import Trainer
from runner.record.environment import code
from runner.record.identity import apart, identity
from runner.record.lines import shown


def heading(config: dict, overrides: list[str], trainer: Trainer, federated, place: Path) -> str:
    """What is about to run, where it will be, and which option was chosen by whom."""
    plain = {
        group: option
        for entry in defaults(conf_dir() / "config.yaml")
        if isinstance(entry, dict)
        for group, option in entry.items()
    }
    expected = plain | dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    choices = config["choices"]
    chosen = " ".join(
        f"{group}={choices[group]}{'' if choices[group] == expected[group] else '*'}"
        for group in SINGLES
        if group not in apart(config)
    )
    lists = " ".join(f"{group}=[{','.join(config[group])}]" for group in LISTS if config[group])
    data, sizes = trainer.dataset, []
    for name in ("train", "val", "test"):
        split = getattr(data, name)
        sizes.append("test not measured" if name == "test" and split is None else f"{len(split or ()):,} {name}")
    lines = [
        f"run     {output.near(place)}",
        f"options {chosen} {lists}".rstrip(),
        f"data    {', '.join(sizes)}{_damage(data.record)}",
        f"model   {trainer.weights.count:,} parameters on {trainer.device} in {trainer.precision.name}, "
        f"{federated.describe(trainer) if trainer.steps else 'nothing to train'}",
    ]
    if trainer.origin:
        lines.append(_origin(trainer.origin))
    if "*" in chosen:
        lines.insert(2, "        * set by another option's file, not on the command line")
    lines += [f"note    {notice}" for notice in trainer.notices]
    if trainer.count:
        lines.append(f"resumed at {'step' if trainer.unit == 'epoch' else trainer.unit} {trainer.count:,}")
    return "\n".join(lines)


def _origin(origin: dict) -> str:
    step = "an unknown step" if origin["step"] is None else f"step {origin['step']:,}"
    parts = [f"start   {origin['path']}, {step}"]
    parts += [f"left out of it: {', '.join(origin['left_out'])} of the loss"] if origin["left_out"] else []
    parts += [f"not from there: {', '.join(origin['fresh'])} of the loss"] if origin["fresh"] else []
    return "; ".join(parts)


def _damage(record: dict) -> str:
    """What was done to the training set on purpose, as it turned out."""
    noise, tail = record.get("noise"), record.get("imbalance")
    text = f"; {noise['kind']} label noise, {100 * noise['realised']:.2f} % of labels changed" if noise else ""
    return text + (f"; long tail, largest class {tail['realised']:.1f} times the smallest" if tail else "")


def result_of(config: dict, trainer: Trainer, found: dict[str, Final]) -> dict:
    """What result.json holds: the measures of the last epoch, and of the best by validation and by test, so named, with
    what was found at the end; and the test accuracy of each class."""
    history = trainer.record.history() if distributed.rank == 0 else []

    def at(step: int) -> dict | None:
        return next((line for line in history if line["step"] == step), None)

    best = {
        f"best_{name}": at(trainer.best[name]["step"]) if name in trainer.best else None for name in ("val", "test")
    }
    lines = {"last": at(trainer.count), **best}
    for key, one in found.items():
        if lines[key] is not None:  # the first process alone has the record
            lines[key] = lines[key] | one.measures
    data = trainer.dataset
    of_classes = {"names": data.names, "samples": list(data.class_counts or ())}
    by_class = {key: one.by_class.tolist() for key, one in found.items()}
    return {
        "id": identity(config),
        "name": config["name"],
        "status": "done",
        "choices": config["choices"],
        "seed": config["seed"],
        "epochs": -(-trainer.count // trainer.steps_per_epoch),
        "steps": trainer.count,
        "seconds": round(trainer.seconds, 3),
        "finished": datetime.now().astimezone().isoformat(timespec="milliseconds"),
        "parameters": trainer.weights.count,
        "precision": trainer.precision.name,
        "device": str(trainer.device),
        **lines,
        "classes": {**of_classes, **by_class, "confused": found["last"].confused.tolist()} if found else None,
        "reliability": _bins(found["last"]) if found else None,
        "data": data.record,
        "notices": trainer.notices,
        "made": {**(trainer.made or {}), "git": _git()},
        **({"checkpoint": trainer.origin} if trainer.origin else {}),
    }


def _git() -> dict | None:
    git, _ = code()
    return git and {key: git[key] for key in ("commit", "dirty")}


def pictures_of(result: dict) -> dict:
    """Name -> what draws it to a path."""
    if result["classes"] is None:  # and nothing to import
        return {}
    from runner.record import pictures

    return pictures.of(result)


def _bins(last: Final) -> dict | None:
    """As of `runner.core.measure.binned`, as trained and after temperature scaling; each null where there is none."""
    kept = {"bins": last.bins, "scaled": last.scaled}
    return {name: None if part is None else part.tolist() for name, part in kept.items()}


SUMMARY = ("accuracy", "miou", "exact", "map", "nll", "perplexity", "ece", "mae", "rmse")


def summary(result: dict) -> str:
    """The three results of a run, each by its name."""
    lines = []
    for key, label in (
        ("last", "last epoch"),
        ("best_val", "best epoch on validation"),
        ("best_test", "best epoch on test (not for reporting)"),
    ):
        if line := result.get(key):
            of = "test_" if any(name.startswith("test_") for name in line) else "val_"  # where test is not measured
            there = {name: value for name, value in line.items() if name.startswith(of) and value is not None}
            own = [name for name in there if name.removeprefix(of) in SUMMARY] or there  # a loss's own measures: all
            values = "  ".join(f"{name} {shown(name, there[name])}" for name in own)
            lines.append(f"{label:<39} epoch {line['epoch']:>3}  {values}")
    if found := result.get("quantization"):
        names = ("full", "fake", "deployed", "onnx")
        of = "val" if result["last"] and "test_accuracy" not in result["last"] else "test"
        accuracy = {name: (found.get(name) or {}).get(f"{of}_accuracy") for name in names}
        values = "  ".join(f"{name} {100 * value:.2f} %" for name, value in accuracy.items() if value is not None)
        size = f"{found['bytes']:,} bytes, {found['bytes_full']:,} in full precision"
        lines.append(f"{f'quantized, on {of}':<39} {values}  {size}")
    return "\n".join(lines)
