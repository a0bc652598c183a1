"""From a checked config to the objects of a run, with all global state set anew."""

import copy
import hashlib
import math
import os
import random
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from runner.command.build import build, kinds
from runner.command.config import Train, sources
from runner.core import distributed, keyed, threads
from runner.core.batch import Batch
from runner.core.dropout import Masks
from runner.core.mistake import ConfigError
from runner.core.precision import Precision
from runner.core.reach import unreached
from runner.core.work import multiplications
from runner.dataset.loader import Loader
from runner.engine import contract, ending, estimated, grouped, parts, places, players, rows, trial
from runner.engine.start import Start
from runner.engine.trainer import Trainer
from runner.hook import Hook, Hooks
from runner.loss import Loss
from runner.quantization.late import Late
from runner.record.origin import digest
from runner.transform import maps


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
    threads.allow(threads.allowed())
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
    with as_config_error("dataset"), trial.theirs("dataset", dataset, "fails in prepare"):
        dataset.prepare()
    if not train.test:
        dataset.test = None
    with trial.theirs("dataset", dataset, "has not all that super().prepare() sets"):
        context = dataset.context
    augments = [build(node, f"augment.{name}", **context) for name, node in config["augment"].items()]
    model = build(config["model"], "model", **context)
    places.ids(config, dataset, model)
    images_last = channels_last(train, model, device)
    sampler = build(config["sampler"], "sampler")
    with as_config_error(f"sampler={config['choices']['sampler']}"):
        parts.prepare(sampler, dataset, train.batch_size, config["seed"])
    loader = Loader(
        dataset,
        device,
        train.batch_size,
        config["seed"],
        augments,
        sampler,
        workers=train.workers,
        drop_last=train.drop_last,
        channels_last=images_last,
        rank=distributed.rank,
        world=distributed.world,
        dtype=torch.get_default_dtype(),
    )
    _check_batches(loader, train)
    memory_format = torch.channels_last if images_last else torch.preserve_format
    masks = Masks([config["seed"]])
    example = next(iter(_whole(loader).evaluate(dataset.train.select(torch.arange(min(2, len(dataset.train)))), 2)))
    model = masks.install(model).to(device, memory_format=memory_format)
    changes = {f"transform.{name}": build(node, f"transform.{name}") for name, node in config["transform"].items()}
    model = masks.install(parts.changed(changes, "build", model, example)).to(device, memory_format=memory_format)
    start = Start(config["checkpoint"]) if config.get("checkpoint") else None
    if start is not None:
        start.into_model(model)
    model = masks.install(parts.changed(changes, "adapt", model, example)).to(device, memory_format=memory_format)
    threads.take(train.threads, work(train, model, example) if device.type == "cpu" else math.inf)
    transform = build(config["quantization"], "quantization")
    if (names := maps.mapped(model)) and not transform.maps:
        raise ConfigError(
            f"quantization={config['choices']['quantization']} goes by the weights themselves, and a transform makes "
            f"others of them ({names[0]}): choose another, such as quantization=lsq"
        )
    calibration = calibration_batch(dataset, loader, config["seed"], transform.calibration) or example
    with trial.guard("quantization", transform, "prepare fails"), as_config_error("quantization"):
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
        others = [name for name, kind in kinds("loss").items() if dataset.task in kind.tasks]
        raise ConfigError(
            f"loss={config['choices']['loss']} is defined for {' and '.join(tasks)}, "
            f"dataset={config['choices']['dataset']} has {dataset.task}; "
            f"for that there are loss={', '.join(others)}"
        )
    origin = None
    if start is not None:
        taken = start.into_loss(loss, config["choices"]["loss"], trains=not rounds)
        facts, lines = start.compare(config, dataset.fingerprint)
        origin = {
            "path": str(start.path),
            "weights": digest(config["checkpoint"]),
            "step": start.step,
            **taken,
            **facts,
        }
        dataset.notices += lines
    loader.views, loader.draw = loss.views, None if type(loss).draw is Loss.draw else loss.draw
    parts.together(config, loss, model, dataset)
    example = loader.like_training(example)
    risk = build(config["risk"], "risk", **context).to(device)
    places.refuse(config, dataset, out, loss, risk)
    trial.value(model, loss, risk, out, example, dataset)
    groups = build(config["groups"], "groups")
    with as_config_error("model"):
        whose = players.players(loss, config["choices"]["loss"], model, loss, risk)
        weights, tensors = grouped.divided(config, groups, model, loss, risk, players=whose)
    server = {"params": [torch.nn.Parameter(weights.data.clone())], "seed": config["seed"]}
    federated = build(config["federated"], "federated", **server)
    hooks = {name: build(node, f"hook.{name}", **context) for name, node in config["hook"].items()}
    hooks = {name: change for name, change in changes.items() if isinstance(change, Hook)} | hooks
    if loss.turns:
        hooks = {"turns": players.Turn()} | hooks
    if isinstance(sampler, Hook):
        hooks = {"sampler": sampler} | hooks
    if isinstance(balance := build(config["balance"], "balance"), Hook):
        hooks = {"balance": balance} | hooks
    if isinstance(transform, Hook):
        hooks = {"quantization": transform} | hooks
    if transform.begin:
        hooks = {"late": Late(transform.begin, calibration)} | hooks
    make, params = grouped.optimizer(config["optim"], weights, tensors)
    optimizer = make(params)
    sharpness = build(config["sharpness"], "sharpness")
    trial.attributes(optimizer, sharpness)
    ineffective, looked = contract.check(optimizer, make, params)
    ineffective += grouped.lines(config["choices"]["groups"], weights, tensors, optimizer)
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
    trainer.channels_last, trainer.origin = images_last, origin
    trainer.notices += ineffective
    where = "hook" if type(federated).start is Hook.start else "federated"
    with trial.one_line(where), as_config_error(where):
        for begin in trainer.hooks.starts:
            with trial.theirs(where, begin.__self__, "fails in start"):
                begin(trainer)
    rows.balanced(trainer, balance, config["choices"], example)
    estimated.estimated(trainer, build(config["gradient"], "gradient"), config["choices"], example)
    contract.looks(trainer, looked, config["choices"], example)
    players.refuse(trainer, config["choices"])
    for where, part in {"loss": loss, "risk": risk, "sharpness": trainer.sharpness, **changes}.items():
        with trial.theirs(where, part, "fails in notices"):
            lines = part.notices(trainer)
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise trial.wrong(where, part, "notices", "a list of lines", lines)
        trainer.notices += lines
    if loss.predicts and not loss.probabilities and dataset.task != "regression" and not dataset.places:
        trainer.notices.append(
            f"loss={config['choices']['loss']} defines no probabilities here: NLL, Brier score and calibration errors "
            f"are null{', but for those after temperature scaling' if dataset.val is not None else ''}"
        )
    ending.check(trainer)
    if rounds:
        trainer.steps = 0
    else:
        parts.check(trainer, federated.epochs(trainer), example)
        named = {"loss": loss, "risk": risk, "schedule": trainer.schedule, "sharpness": trainer.sharpness}
        named |= {"quantization": transform, "federated": federated}
        options = {f"{group}={config['choices'][group]}": part for group, part in named.items()}
        options |= {f"hook={name}": hooks[name] for name in config["hook"]}
        options |= {where.replace(".", "="): change for where, change in changes.items()}
        for where, part in options.items():
            with trial.theirs(where, part, "has no begins(steps, steps_per_epoch) that gives runner.core.reach.Begin"):
                trainer.notices += unreached(where, part, federated.clocks(trainer, part))
    return trainer, federated, transform, calibration


def channels_last(train: Train, model: torch.nn.Module, device: torch.device) -> bool:
    """Whether images are kept channels last. `auto` is what is faster, as far as it was measured: on a CPU, where there
    are convolutions, which then take 0.7 to 0.9 of the time; not on a GPU."""
    if train.channels_last != "auto":
        return train.channels_last
    return device.type == "cpu" and any(isinstance(module, torch.nn.Conv2d) for module in model.modules())


def work(train: Train, model: torch.nn.Module, example: Batch) -> int:
    """Multiplications of a pass over a micro-batch; 0 of a model that fails, of which `trial.output` says it."""
    found, random = 0, torch.get_rng_state()
    model.eval()
    with suppress(Exception, SystemExit):
        found = multiplications(model, example.x)
    model.train()
    torch.set_rng_state(random)
    return found * math.ceil(train.batch_size / (distributed.world * train.accumulate))


def calibration_batch(dataset, loader: Loader, seed: int, size: int) -> Batch | None:
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
def as_config_error(where: str):
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_batches(loader: Loader, train: Train) -> None:
    if loader.steps_per_epoch == 0:
        raise ConfigError(
            f"train.batch_size={train.batch_size}: an epoch of {loader.sampler.length} samples has no whole batch to "
            f"share among {distributed.world} process(es); take a smaller batch or train.drop_last=false"
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
