"""One run: from a checked config to result.json."""

import copy
import hashlib
import logging
import os
import random
import signal
import sys
import tempfile
import threading
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from runner import again, checkpoint, contract, diagnose, distributed, keyed, output, parts, provenance, trial
from runner.batch import Batch
from runner.build import ConfigError, build, locate
from runner.config import LISTS, SINGLES, Train, folder, identity, sources, without_effect
from runner.dataset.loader import Loader
from runner.dropout import Masks
from runner.errors import defaults
from runner.final import Final, final
from runner.hook import Hook, Hooks
from runner.listing import conf_dir, options
from runner.precision import Precision
from runner.quantization.late import Late
from runner.reach import unreached
from runner.record import Record, Stopped, code, finished
from runner.start import Start
from runner.trainer import Trainer
from runner.weights import Weights

warn = logging.getLogger(__name__).warning


def run(config: dict, overrides: list[str], say=print) -> dict:
    """Train what `config` (plain dicts, checked by `runner.config.check_all`) describes, in its own folder.

    A finished run is returned as it is, an interrupted one goes on. Returns what result.json holds.

    Raises
    ------
    ConfigError
        What can only be found out with the data and the device at hand; nothing has been written then.
    Stopped
        After SIGINT, SIGTERM or SIGHUP, with the state saved.
    """
    say = spoken if say is print else say
    tell = say if distributed.rank == 0 else lambda *_: None
    place = folder(config)
    trouble, result = distributed.from_first(_found(config, place) if distributed.rank == 0 else None)
    if trouble:
        raise ConfigError(trouble)
    if result is not None:
        tell(f"{again.greeting(config, result, place)}\n{summary(result)}")
        return result
    job = Job(config, overrides)
    trainer = job.trainer
    bar = _Bar(trainer.steps, tell)
    trainer.tell = bar.tell
    with output.unbreakable(), job.locked(), signals(lambda name: setattr(trainer, "stop", name)) as end:
        job.resume()
        job.start()
        tell(_heading(config, overrides, job, place))
        with bar.shown(trainer):
            job.federated.run(trainer)
        try:
            end()
            result = job.finish()
        except Interrupted as name:
            raise Stopped(str(name)) from None
    tell(f"{summary(result)}\n{output.near(place)}")
    return result


def spoken(text: str) -> None:
    print(output.fitted(text), flush=True)


def _found(config: dict, place: Path) -> tuple[str | None, dict | None]:
    """(why what is there is no result of this run, the result of a finished run)"""
    trouble = again.trouble(config, place)
    return trouble, None if trouble else finished(place)


class Job:
    """One run, built from its config and not begun: nothing is written before `locked`.

    Building sets all global state anew (see `prepare`). Raises ConfigError.
    """

    def __init__(self, config: dict, overrides: list[str]):
        self.config, self.overrides, self.folder = config, overrides, folder(config)
        self.lines: int | None = None  # of metrics.jsonl at the checkpoint that `resume` found
        train = Train(**config["train"])
        device = distributed.device(config["device"])
        prepare(config["seed"], train, device)
        loggers = [build(node, f"logger.{name}") for name, node in config["logger"].items()]
        self.record = Record(self.folder, loggers) if distributed.rank == 0 else Elsewhere(self.folder)
        with trial.one_line():
            if others := trial.tried(config):
                with tempfile.TemporaryDirectory() as scratch:  # what they write there is gone with it
                    made, _, *rest = assemble(trial.central(config), train, device, Elsewhere(Path(scratch)))
                    trial.two_steps(made, *rest, others)
                    del made, rest
                prepare(config["seed"], train, device)
            built = assemble(config, train, device, self.record)
        self.trainer, self.federated, self.transform, self.calibration = built
        self.trainer.notices += without_effect(config, overrides).values()
        data = self.trainer.dataset.record.get("fingerprint")
        self.trainer.made = {"id": identity(config), **provenance.code(config), "data": data}

    @contextmanager
    def locked(self):
        """Alone with the folder; an exception inside is kept there as what became of the run."""
        with _as_config_error("name"):
            self.record.__enter__()
        try:
            yield
        except BaseException:
            self.record.__exit__(*sys.exc_info())
            raise
        self.record.__exit__(None, None, None)

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one and something to train.

        Raises ConfigError where it is damaged, or of other code or data.
        """
        path, trainer = self.folder / "last.pt", self.trainer
        if not trainer.steps:
            return
        if not distributed.from_first(path.exists()):
            if distributed.rank == 0 and (epoch := again.reached(self.folder)):
                lines = self.folder / "metrics.jsonl"
                warn("%s goes to epoch %s, but there is no last.pt to go on from: begun anew", lines, epoch)
            return
        try:
            state = checkpoint.load(path)
            if not trainer.state_dict().keys() <= state.keys():
                raise checkpoint.Damaged(f"{path} does not hold the state of a run")
            if (of := (state.get("made") or {}).get("id", trainer.made["id"])) != trainer.made["id"]:
                raise checkpoint.Damaged(f"{path} is of another run, {of}")
        except checkpoint.Damaged as damage:
            raise ConfigError(again.torn(str(damage), self.folder)) from damage
        if differ := provenance.changed(state.get("made"), trainer.made):
            raise ConfigError(
                f"{self.folder} is at step {state['count']:,} of {trainer.steps:,}, but {'; '.join(differ)}: put that "
                f"back to go on, or {provenance.AGAIN}"
            )
        try:
            trainer.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            why = f"{path} does not fit what this command builds ({said:.300})"
            raise ConfigError(again.torn(why, self.folder)) from error
        trainer.notices += provenance.drifted(state.get("made"), trainer.made)
        self.lines = state["lines"]

    def start(self) -> None:
        with _as_config_error("name"):
            self.record.start(self.config, self.overrides, self.lines)
        if self.record.lost:
            self.trainer.notices.append(self.record.lost)

    def finish(self) -> dict:
        """After the last step: what is measured once, what is deployed, the pictures, and result.json."""
        from runner.quantization.deploy import report

        found = final(self.trainer)
        result = _result(self.config, self.trainer, found)
        if quantized := report(self.trainer, self.transform, self.calibration):
            result["quantization"] = quantized
            for name in ("fake", "deployed"):
                diagnose.check_measures(self.trainer, f"{name}-quantized".replace("deployed-", ""), quantized[name])
        self.record.finish(result, _pictures(result))
        return result


def prepare(seed: int, train: Train, device: torch.device) -> None:
    """Everything global that a run depends on, set anew so that nothing of an earlier run in this process remains.

    What is not said by the config is set as it is in a new process: nothing else decides what a run computes.
    """
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device={device}: there are {torch.cuda.device_count()} CUDA devices here")
        torch.cuda.set_device(device)
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if strict != (train.deterministic, False):  # not in any case: the call imports the compiler, which takes a second
        torch.use_deterministic_algorithms(train.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.deterministic = torch.backends.mkldnn.deterministic = train.deterministic
    torch.backends.cudnn.benchmark = not train.deterministic
    torch.backends.cudnn.enabled = torch.backends.mkldnn.enabled = True
    for part in (torch.backends, torch.backends.cudnn, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn):
        part.fp32_precision = "none"  # not said; the next two say it where torch does
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    products = torch.backends.cuda.matmul
    products.allow_fp16_reduced_precision_reduction = products.allow_bf16_reduced_precision_reduction = True
    products.allow_fp16_accumulation = False
    torch.backends.cuda.enable_flash_sdp(True), torch.backends.cuda.enable_mem_efficient_sdp(True)
    torch.backends.cuda.enable_math_sdp(True), torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.mha.set_fastpath_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.set_anomaly_enabled(False)
    torch.set_flush_denormal(False)
    for kind, dtype in (("cpu", torch.bfloat16), ("cuda", torch.float16)):
        torch.set_autocast_enabled(kind, False)
        torch.set_autocast_dtype(kind, dtype)
    torch.set_autocast_cache_enabled(True)
    torch.clear_autocast_cache()
    np.seterr(divide="warn", over="warn", under="ignore", invalid="warn")
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()  # what it compiled for earlier models counts towards its limit of versions
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def assemble(config: dict, train: Train, device: torch.device, record) -> tuple:
    """Build every object of a run from its nodes. Returns (trainer, federated, transform, its calibration batch)."""
    dataset = build(config["dataset"], "dataset", seed=config["seed"], **sources(config))
    with _as_config_error("dataset"), trial.theirs("dataset", dataset, "fails in prepare"):
        dataset.prepare()
    with trial.theirs("dataset", dataset, "has not all that super().prepare() sets"):
        context = dataset.context
    augments = [build(node, f"augment.{name}", **context) for name, node in config["augment"].items()]
    model = build(config["model"], "model", **context)
    loader = Loader(
        dataset,
        device,
        train.batch_size,
        config["seed"],
        augments,
        workers=train.workers,
        drop_last=train.drop_last,
        channels_last=train.channels_last,
        rank=distributed.rank,
        world=distributed.world,
        dtype=torch.get_default_dtype(),
    )
    _check_batches(loader, len(dataset.train), train)
    memory_format = torch.channels_last if train.channels_last else torch.preserve_format
    masks = Masks([config["seed"]])
    model = masks.install(model).to(device, memory_format=memory_format)
    start = Start(config["checkpoint"]) if config.get("checkpoint") else None
    if start is not None:
        start.into_model(model)
    transform = build(config["quantization"], "quantization")
    example = next(iter(_whole(loader).evaluate(dataset.train.select(torch.arange(min(2, len(dataset.train)))), 2)))
    calibration = _calibration(dataset, loader, config["seed"], transform.calibration) or example
    with trial.guard("quantization", transform, "prepare fails"), _as_config_error("quantization"):
        prepared = transform.prepare(model, calibration)
    if not isinstance(prepared, torch.nn.Module):
        raise trial.wrong("quantization", transform, "prepare", "the model, a torch.nn.Module", prepared)
    model = masks.install(prepared)
    precision = Precision(train.precision, device)
    out = trial.output(model, example, precision)
    context["features"] = out.features.shape[-1]
    loss = masks.install(build(config["loss"], "loss", **context)).to(device)
    rounds = start is not None and transform.after  # and does not train
    with trial.guard("loss", loss, "has no tasks"):
        tasks = tuple(loss.tasks)
    if dataset.task not in tasks:
        raise ConfigError(
            f"loss={config['choices']['loss']} is defined for {' and '.join(tasks)}, "
            f"dataset={config['choices']['dataset']} has {dataset.task}; "
            f"for that there are loss={', '.join(_losses_for(dataset.task))}"
        )
    origin = None
    if start is not None:
        taken = start.into_loss(loss, config["choices"]["loss"], trains=not rounds)
        facts, lines = start.compare(config, dataset.fingerprint)
        origin = {"path": str(start.path), "weights": start.digest(), "step": start.step, **taken, **facts}
        dataset.notices += lines
    risk = build(config["risk"], "risk", **context).to(device)
    trial.value(model, loss, risk, out, example, dataset.classes)
    with _as_config_error("model"):
        weights = Weights(model, loss, risk)
    elementwise = getattr(locate(config["optim"]["_target_"], "optim"), "elementwise", False)
    params = [weights.flat] if elementwise else weights.parameters
    server = {"params": [torch.nn.Parameter(weights.data.clone())], "seed": config["seed"]}
    federated = build(config["federated"], "federated", **server)
    hooks = {name: build(node, f"hook.{name}", **context) for name, node in config["hook"].items()}
    if isinstance(transform, Hook):
        hooks = {"quantization": transform} | hooks
    if transform.begin:
        hooks = {"late": Late(transform.begin, calibration)} | hooks
    optimizer = build(config["optim"], "optim", params=params)
    sharpness = build(config["sharpness"], "sharpness")
    trial.attributes(optimizer, sharpness)
    ineffective = contract.check(optimizer, lambda other: build(config["optim"], "optim", params=other), params)
    trainer = Trainer(
        dataset=dataset,
        loader=loader,
        model=model,
        loss=loss,
        risk=risk,
        weights=weights,
        optimizer=optimizer,
        schedule=build(config["schedule"], "schedule"),
        sharpness=sharpness,
        hooks=Hooks(trial.among(federated, hooks)),
        precision=precision,
        masks=masks,
        train=train,
        device=device,
        record=record,
    )
    trainer.notices += ineffective
    where = "hook" if type(federated).start is Hook.start else "federated"
    with trial.one_line(where), _as_config_error(where):
        for begin in trainer.hooks.starts:
            with trial.theirs(where, begin.__self__, "fails in start"):
                begin(trainer)
    for where, part in {"loss": loss, "risk": risk, "sharpness": trainer.sharpness}.items():
        with trial.theirs(where, part, "fails in notices"):
            lines = part.notices(trainer)
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise trial.wrong(where, part, "notices", "a list of lines", lines)
        trainer.notices += lines
    if not loss.probabilities and dataset.task != "regression":
        trainer.notices.append(
            f"loss={config['choices']['loss']} defines no probabilities here: NLL, Brier score and calibration errors "
            f"are null{', but for those after temperature scaling' if dataset.val is not None else ''}"
        )
    trainer.origin = origin
    if rounds:
        trainer.steps = 0
    else:
        parts.check(trainer, federated.epochs(trainer), example)
        named = {"loss": loss, "risk": risk, "schedule": trainer.schedule, "sharpness": trainer.sharpness}
        named |= {"quantization": transform, "federated": federated}
        options = {f"{group}={config['choices'][group]}": part for group, part in named.items()}
        options |= {f"hook={name}": hooks[name] for name in config["hook"]}
        for where, part in options.items():
            with trial.theirs(where, part, "has no begins(steps, steps_per_epoch) that gives runner.reach.Begin"):
                trainer.notices += unreached(where, part, federated.clocks(trainer, part))
    return trainer, federated, transform, calibration


def _losses_for(task: str) -> list[str]:
    """The options of conf/loss that are defined for the task, which their classes say."""
    import yaml

    targets = {
        name: yaml.safe_load(path.read_text())["_target_"] for name, path in options("loss", [conf_dir()]).items()
    }
    return [name for name, target in targets.items() if task in locate(target, "loss").tasks]


def _calibration(dataset, loader: Loader, seed: int, size: int) -> Batch | None:
    """Training samples keyed by the seed, without augmentation, the same in every process; recorded in the result."""
    if not size:
        return None
    chosen = keyed.generator(seed, "calibration").permutation(len(dataset.train))[:size]
    rows = torch.from_numpy(np.sort(chosen))
    digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:10]
    dataset.record["calibration"] = {"samples": len(rows), "rows": digest, "of": "train"}
    return next(iter(_whole(loader).evaluate(dataset.train.select(rows), len(rows))))


def _whole(loader: Loader) -> Loader:
    """The same loader, of which this process has all samples and not its share."""
    whole = copy.copy(loader)
    whole.rank, whole.world = 0, 1
    return whole


@contextmanager
def _as_config_error(where: str):
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_batches(loader: Loader, samples: int, train: Train) -> None:
    if loader.steps_per_epoch == 0:
        raise ConfigError(
            f"train.batch_size={train.batch_size}: an epoch of {samples} samples has no whole batch to share among "
            f"{distributed.world} process(es); take a smaller batch or train.drop_last=false"
        )


class Elsewhere:
    """The record as the processes see it that do not write it."""

    def __init__(self, folder: Path):
        self.folder, self.lines, self.lost = folder, 0, ""

    def start(self, *_) -> None: ...
    def sync(self) -> None: ...
    def log(self, *_) -> None: ...
    def finish(self, *_) -> None: ...
    def __enter__(self): ...
    def __exit__(self, *_): ...


class Interrupted(KeyboardInterrupt):
    """A signal that came when there was nothing left to save; its name."""


@contextmanager
def signals(stop):
    """SIGINT, SIGTERM and SIGHUP are acknowledged in a line and call stop(their name), and training ends after the
    present step; a second SIGINT ends it at once.

    Yields what is to be called when training is over and saved: from then on a signal raises Interrupted where it
    comes, and one that came before does so now.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked, over = "", False

    def ask(number, frame):
        nonlocal asked
        first, asked = not asked, asked or signal.Signals(number).name
        if first and distributed.rank == 0:
            what = "the state is saved" if over else "after this step, with the state saved; Ctrl-C: at once"
            output.at_once(f"{asked}: stopping{';' * over} {what}")
        if over:
            raise Interrupted(asked)
        stop(asked)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def end():
        nonlocal over
        over = True
        if asked:
            raise Interrupted(asked)
        signal.signal(signal.SIGINT, ask)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup means what it says
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Bar:
    """A progress bar with rate and ETA on a terminal; nothing but the epochs' lines elsewhere."""

    def __init__(self, steps: int, say):
        self.steps, self.say, self.bar = steps, say, None

    @contextmanager
    def shown(self, trainer: Trainer):
        if distributed.rank == 0 and self.say is spoken and sys.stderr.isatty():
            from tqdm import tqdm

            with tqdm(
                total=self.steps, initial=trainer.count, unit=" step", leave=False, dynamic_ncols=True
            ) as self.bar:
                trainer.progress = self.bar
                yield
            self.bar = None
        else:
            yield

    def tell(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(output.fitted(line))
        else:
            self.say(line)


def _heading(config: dict, overrides: list[str], job: Job, place: Path) -> str:
    """What is about to run, where it will be, and which option was chosen by whom."""
    trainer = job.trainer
    plain = {
        group: option
        for entry in defaults(conf_dir() / "config.yaml")
        if isinstance(entry, dict)
        for group, option in entry.items()
    }
    expected = plain | dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    choices = config["choices"]
    chosen = " ".join(
        f"{group}={choices[group]}{'' if choices[group] == expected[group] else '*'}" for group in SINGLES
    )
    lists = " ".join(f"{group}=[{','.join(config[group])}]" for group in LISTS if config[group])
    data, sizes = trainer.dataset, []
    for name in ("train", "val", "test"):
        split = getattr(data, name)
        sizes.append(f"{len(split) if split else 0:,} {name}")
    lines = [
        f"run     {output.near(place)}",
        f"options {chosen} {lists}".rstrip(),
        f"data    {', '.join(sizes)}{_damage(data.record)}",
        f"model   {trainer.weights.count:,} parameters on {trainer.device} in {trainer.precision.name}, "
        f"{job.federated.describe(trainer) if trainer.steps else 'nothing to train'}",
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


def _result(config: dict, trainer: Trainer, found: dict[str, Final]) -> dict:
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
        "classes": {"names": data.names, "samples": list(data.class_counts), **by_class} if found else None,
        "reliability": _bins(found["last"]) if found else None,
        "data": data.record,
        "notices": trainer.notices,
        "made": {**(trainer.made or {}), "git": _git()},
        **({"checkpoint": trainer.origin} if trainer.origin else {}),
    }


def _git() -> dict | None:
    git, _ = code()
    return git and {key: git[key] for key in ("commit", "dirty")}


def _pictures(result: dict) -> dict:
    """Name -> what draws it to a path."""
    if result["classes"] is None:  # and nothing to import
        return {}
    from runner import pictures

    return pictures.of(result)


def _bins(last: Final) -> dict | None:
    """As of `runner.measure.binned`, as trained and after temperature scaling; each null where there is none."""
    kept = {"bins": last.bins, "scaled": last.scaled}
    return {name: None if part is None else part.tolist() for name, part in kept.items()}


SUMMARY = [f"test_{key}" for key in ("accuracy", "exact", "map", "nll", "ece", "mae", "rmse")]


def summary(result: dict) -> str:
    """The three results of a run, each by its name."""
    lines = []
    for key, label in (
        ("last", "last epoch"),
        ("best_val", "best epoch on validation"),
        ("best_test", "best epoch on test (not for reporting)"),
    ):
        if line := result.get(key):
            shown = "  ".join(
                f"{name} {100 * value:.2f} %" if "accuracy" in name else f"{name} {value:.4f}"
                for name, value in line.items()
                if name in SUMMARY and value is not None
            )
            lines.append(f"{label:<39} epoch {line['epoch']:>3}  {shown}")
    if found := result.get("quantization"):
        names = ("full", "fake", "deployed", "onnx")
        accuracy = {name: (found.get(name) or {}).get("test_accuracy") for name in names}
        shown = "  ".join(f"{name} {100 * value:.2f} %" for name, value in accuracy.items() if value is not None)
        size = f"{found['bytes']:,} bytes, {found['bytes_full']:,} in full precision"
        lines.append(f"{'quantized, on test':<39} {shown}  {size}")
    return "\n".join(lines)
