"""What begins too late for a run is said before it starts, and refused where the run makes no sense without it."""

import inspect
import re
import typing
from typing import NamedTuple

import pytest
import torch
import yaml

from runner.command.build import CONTEXT, locate, parameters
from runner.command.config import LISTS
from runner.command.listing import GROUPS, conf_dir, options
from runner.core.mistake import ConfigError
from runner.core.reach import Begin, Clock, unreached
from runner.engine.run import run as run_config
from runner.federated.fedavg import FedAvg
from runner.loss import Loss
from runner.sweep import pack
from runner.sweep.cells import Cell
from scripts.packing import NEEDS
from tests.tiny import compose, trainer

# Twelve steps, three an epoch
RUN = ["dataset.subset=60", "dataset.val=0", "train.batch_size=20", "train.epochs=4", "model.hidden=[8]"]


class Row(NamedTuple):
    """One thing that begins: `early` within the twelve steps, at step `at`, and `late` never.

    says : a part of the line about it. other : what a run is until then, where it is not the run with `late`.
    exact : whether step `at` changes the weights; else it may.
    """

    words: list[str]
    early: list[str]
    late: list[str]
    says: str
    at: int | None = None
    other: list[str] | None = None
    exact: bool = True


SHORT = ["train.epochs=1"]
MESA = ["hook=mesa", "hook.mesa.decay=0.5", "hook.mesa.coefficient=5"]
ROWS = {
    "hook=drw epoch": Row(["hook=drw"], ["hook.drw.epoch=2"], ["hook.drw.epoch=4"], "epoch=4 comes after 12", 6),
    "hook=saf start": Row(
        ["hook=saf", "hook.saf.lag=1"], ["hook.saf.start=1"], ["hook.saf.start=3"], "(start=3) comes after 12", 6
    ),
    "hook=saf lag": Row(
        ["hook=saf", "hook.saf.start=0"], ["hook.saf.lag=2"], ["hook.saf.lag=4"], "(lag=4) comes after 12", 6
    ),
    "hook=mesa start": Row(MESA, ["hook.mesa.start=1"], ["hook.mesa.start=3"], "(start=3) comes after 12", 6),
    "hook=mesa decay": Row([*MESA, "hook.mesa.start=0"], [], ["hook.mesa.decay=0.9998"], "comes after 3,466 steps"),
    "hook=ema decay": Row(
        ["hook=ema", "hook.ema.warm=false"], ["hook.ema.decay=0.5"], ["hook.ema.decay=0.999"], "comes after 693 steps"
    ),
    "hook=spectral_decoupling delay": Row(
        ["hook=spectral_decoupling"],
        ["hook.spectral_decoupling.delay=5"],
        ["hook.spectral_decoupling.delay=12"],
        "delay=12 comes after 12",
        5,
    ),
    "schedule=multistep milestones": Row(
        ["schedule=multistep"],
        ["schedule.milestones=[2]"],
        ["schedule.milestones=[4]"],
        "milestone 4 comes after 12",
        6,
    ),
    "schedule=wsd begin": Row(["schedule=wsd"], ["schedule.begin=0.5"], ["schedule.begin=1"], "begin=1 comes after", 7),
    "risk=adaptive_k warmup": Row(
        ["risk=adaptive_k"], ["risk.warmup=0.5"], ["risk.warmup=1"], "warmup=1 comes after 12", 6, exact=False
    ),
    "risk=dynamic_reweight warmup": Row(
        ["risk=dynamic_reweight"], ["risk.warmup=0.5"], ["risk.warmup=1"], "warmup=1 comes after 12", 6
    ),
    "risk=prospect memory": Row(["risk=prospect"], [], SHORT, "comes after 3 steps, and there are 3", 3, ["risk=mean"]),
    "loss=elr memory": Row(["loss=elr"], [], SHORT, "comes after 3 steps, and there are 3", 3, ["observe"]),
    "loss=aldr_kl memory": Row(["loss=aldr_kl"], [], SHORT, "comes after 3 steps, and there are 3", 3, ["observe"]),
    "loss=adaface t_alpha": Row(["loss=adaface"], ["loss.t_alpha=0.5"], ["loss.t_alpha=0.01"], "comes after 69 steps"),
    "loss=evidential begin": Row(
        ["loss=evidential"], ["loss.begin=2"], ["loss.begin=4"], "(begin=4) comes after 12 steps, and there are 12", 6
    ),
    "transform=magnitude begin": Row(
        ["transform=magnitude", "transform.magnitude.every=1", "transform.magnitude.initial=0.5"],
        ["transform.magnitude.begin=0.5", "transform.magnitude.end=0.9"],
        ["transform.magnitude.begin=1", "transform.magnitude.end=1"],
        "begin=1 comes after 12 steps",
        6,
    ),
    "transform=magnitude end": Row(
        ["transform=magnitude", "transform.magnitude.every=1"],
        ["transform.magnitude.end=0.5"],
        ["transform.magnitude.end=1"],
        "end=1 comes after 12 steps",
    ),
    "quantization=biper first": Row(
        ["quantization=biper"], ["quantization.first=0.5"], ["quantization.first=1"], "first=1 comes after 12", 6
    ),
    "quantization=reste o_end": Row(
        ["quantization=reste"], [], SHORT, "the second epoch comes after 3", 3, ["quantization.o_end=1"]
    ),
    "quantization=gaqat period": Row(
        ["quantization=gaqat", "optim=sam", "quantization.threshold=1"],
        ["quantization.period=4"],
        ["quantization.period=12"],
        "period=12 comes after 12",
        4,
    ),
    "quantization=adapt min_lookback": Row(
        ["quantization=adapt"],
        ["quantization.min_lookback=4", "quantization.max_lookback=5"],
        ["quantization.min_lookback=13"],
        "min_lookback=13",
        4,
        exact=False,
    ),
}
for name in ("constant", "cosine", "linear", "multistep", "wsd"):
    own = ["schedule.milestones=[3]"] if name == "multistep" else []
    late = ["schedule.milestones=[9]"] if name == "multistep" else []
    ROWS[f"schedule={name} warmup"] = Row(
        [f"schedule={name}"], ["schedule.warmup=1", *own], ["schedule.warmup=5", *late], "warmup=5 comes after 15"
    )
BEGIN = [o for o in options("quantization", [conf_dir()]) if "begin" in compose(f"quantization={o}")["quantization"]]


def notes(row: Row, words: list[str]) -> list[str]:
    return about(made(row, words), f"{row.words[0]}:")


def about(run, where: str = "hook=") -> list[str]:
    return [line for line in run.notices if line.startswith(where)]


def made(row: Row, words: list[str]):
    option = row.words[0].partition("=")[2]
    needed = NEEDS.get(option, []) if "quantization" in row.words[0] else []
    return trainer(*RUN, *needed, *row.words, *words, double=True)


@pytest.mark.parametrize("name", ROWS)
def test_what_never_begins_is_one_line_and_what_begins_is_none(name):
    row = ROWS[name]
    said = notes(row, row.late)
    assert len([line for line in said if row.says in line]) == 1 and all("\n" not in line for line in said), said
    assert notes(row, row.early) == []


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.at is not None])
def test_it_begins_at_the_step_that_the_line_goes_by(name, monkeypatch):
    """Until then the weights are, bit for bit or nearly, those of a run in which it never begins."""
    row = ROWS[name]
    begun = made(row, row.early)
    begins = trainer_part(begun, row).begins(12, 3)
    assert row.at in [begin.after for begin in begins]
    if row.other == ["observe"]:
        other = made(row, row.early)
        other.loss.observe = lambda *_: None
    else:
        other = made(row, row.late) if row.other is None else made(row, row.other)
    first = None
    for step in range(12):
        ends = []
        for run in (begun, other):
            for batch in run.loader.epoch(step // 3, step % 3):
                torch.manual_seed(step)
                run.step(batch)
                break
            ends.append(run.weights.data[: begun.weights.count].clone())
        if (ends[0] - ends[1]).abs().max() > 1e-12:
            first = step
            break
    assert first == row.at if row.exact else first is None or first >= row.at


def trainer_part(run, row: Row):
    group, option = row.words[0].split("=")
    parts = {"risk": run.risk, "loss": run.loss, "schedule": run.schedule}
    names = {"quantization": "quantization", "transform": f"transform.{option}"}
    return parts.get(group) or run.hooks.named[names.get(group, option)]


@pytest.mark.parametrize("option", BEGIN)
def test_a_quantization_that_never_begins_is_refused_and_one_that_does_is_not(option):
    words = [*RUN, *NEEDS.get(option, []), f"quantization={option}"]
    with pytest.raises(
        ConfigError, match=f"^quantization={option}: begin=0.95 comes after 12 steps, and there are 12: "
    ):
        trainer(*words, "quantization.begin=0.95")
    assert not [line for line in trainer(*words, "quantization.begin=0.5").notices if "begin" in line]


def test_the_whole_rise_is_what_a_warm_up_longer_than_the_run_gives():
    """What the line says of it."""
    run = trainer(*RUN, "schedule=cosine", "schedule.warmup=5")
    rates = [run.schedule(step, 12, 3) for step in range(12)]
    assert rates == sorted(rates) and rates[-1] == 1
    assert "rises until the end" in about(run, "schedule")[0]


# ---- federations, packs, a run's record

CLIENTS = ["federated.clients=3", "federated.minimum=2", "federated.rounds=2", "optim.momentum=0"]


def test_a_clients_steps_are_those_of_all_rounds():
    words = [*RUN, "federated=fedavg", *CLIENTS, "hook=[drw,ema]", "hook.drw.epoch=2"]
    assert about(trainer(*words, "federated.local_epochs=2")) == []  # four epochs of a client
    (line,) = about(trainer(*words))
    assert line == "hook=drw: epoch=2 comes after 2 steps of a client, and there are 2: no sample is weighted"
    words += ["federated.local_steps=5", "federated.partition=quantity", "federated.alpha=0.4", "train.batch_size=4"]
    run = trainer(*words)
    per_epoch = run.hooks.named["federated"].clients.per_epoch
    few = sum(2 * count >= 10 for count in per_epoch)
    assert 0 < few < 3 and f"there are 10 for {few} of 3: no sample" in about(run)[0]


def test_what_the_server_has_goes_by_rounds():
    words = [*RUN, "federated=fedavg", *CLIENTS, "hook=ema", "hook.ema.warm=false", "hook.ema.decay=0.8"]
    (line,) = about(trainer(*words))
    assert "comes after 4 rounds, and there are 2" in line
    assert about(trainer(*words, "federated.rounds=5")) == []


@pytest.mark.parametrize("option", ["scaffold", "fedld", "fedprox"])
def test_a_federation_too_short_for_its_algorithm_is_fedavg_and_says_so(option):
    short = ["federated.local_steps=1"] if option == "fedprox" else ["federated.rounds=1"]
    quiet = ["federated.lam=0"] if option == "fedld" else []  # of a client's own term

    def trained(*words: str):
        run = trainer(*RUN, *CLIENTS, *words, "federated.weighting=uniform", "federated.chunk=1", double=True)
        run.weights.copy_(run.hooks.named["federated"].weights.data)
        for round_ in range(run.steps):
            for _ in run.hooks.named["federated"].one_round(run, round_):
                pass
        return run

    run, plain = trained(f"federated={option}", *short, *quiet), trained("federated=fedavg", *short)
    assert len([line for line in run.notices if line.startswith(f"federated={option}:")]) == 1
    torch.testing.assert_close(run.weights.data, plain.weights.data, rtol=0, atol=1e-12)
    long = ["train.batch_size=5", "federated.local_epochs=2"]
    more = trained(f"federated={option}", *quiet, *long)
    assert about(more, f"federated={option}") == []
    assert (more.weights.data - trained("federated=fedavg", *long).weights.data).abs().max() > 1e-9


def test_the_line_is_in_the_heading_once_in_the_result_and_said_of_a_pack(tmp_path, monkeypatch):
    words = [*RUN, "hook=drw", f"outputs_dir={tmp_path}"]
    said: list[str] = []
    result = run_config(compose(*words), words, say=said.append)
    (line,) = [line for line in result["notices"] if line.startswith("hook=drw")]
    heading = next(text for text in said if f"note    {line}" in text)
    assert said.index(heading) == 0 and line.startswith("hook=drw: epoch=160 comes after 480 steps")

    monkeypatch.setattr(pack, "WORTH", 0.0)
    cells = [Cell(compose(*words, f"seed={seed}"), [*words, f"seed={seed}"]) for seed in (1, 2)]
    told: list[str] = []
    ended: list[str] = []
    pack.together(cells, 2, told.append, lambda cell, status, message: ended.append(status))
    assert ended == ["done", "done"] and told.count(f"note    {line}") == 1


def test_one_line_a_thing():
    class Two:
        def begins(self, steps, steps_per_epoch):
            yield Begin("a", 5, "no a")
            yield Begin("b", 10, "no b")
            yield Begin("c", steps // 2, "no c")

    assert list(unreached("x=y", Two(), [Clock(10, 2)])) == ["x=y: b comes after 10 steps, and there are 10: no b"]
    assert list(unreached("x=y", Two(), [Clock(11, 2)])) == []
    assert list(unreached("x=y", object(), [Clock(11, 2)])) == []
    both = list(unreached("x=y", Two(), [Clock(4, 2, "rounds"), Clock(20, 2, "rounds")]))
    assert both[0] == "x=y: a comes after 5 rounds, and there are 4 for 1 of 2: no a" and len(both) == 2


# ---- nothing is left out

TIMES = {"begin", "delay", "epoch", "first", "lag", "memory", "milestones", "min_lookback", "o_end", "period", "start"}
TIMES |= {"warmup", "decay", "t_alpha", "end"}  # the names of settings that decide when something begins to act
# The others that are numbers; who adds a setting says here that it is none of the former, or writes a row above
PLAIN = {
    "critic_turns", "spread", "attention_heads", "levels",
    "neighbours", "out", "per_class", "strength", "width", "every", "groups", "initial", "rank",
    "L", "M", "a", "alpha", "b", "before", "beta", "beta1", "beta2", "betas", "bits", "blocks", "budget",
    "buffer", "calibration", "candidates", "chunk", "clean", "client_dropout", "clients", "climb_lr",
    "climb_steps", "clip", "coefficient", "dampening", "delta", "deploy", "depth", "dropout", "e", "ends", "eps",
    "epsilon", "eta", "explore_epochs", "explorers", "exponent", "final", "fraction", "frequency", "gamma",
    "gamma_neg", "gamma_pos", "guidance", "h", "hidden", "inputs", "k", "k_proportion", "kl", "kurtosis", "l1",
    "label_smoothing", "labels", "lam", "level", "local_epochs", "local_steps", "log_end", "lr", "lr_bias",
    "lr_inputs", "lr_tune", "lr_weights", "m", "margin", "max_lookback", "max_m", "max_resolution", "min_resolution",
    "minimum", "momentum", "mu", "norm", "nu", "padding", "parameter", "participation", "partition_seed",
    "penalty", "percentile", "positive", "r", "ratio", "reg", "rest_lr", "rho", "rounds", "s", "scale", "sharpness",
    "shift", "sigma", "size", "skewness", "step", "steps", "subnets", "tau", "temperature", "threshold", "tune",
    "v0", "warm", "weight", "weight_decay", "widen", "widths", "window", "word",
}  # fmt: skip


def numeric(hint) -> bool:
    if hint in (int, float):
        return True
    if typing.get_origin(hint) is typing.Annotated:
        return numeric(typing.get_args(hint)[0])
    return typing.get_origin(hint) is not typing.Literal and any(numeric(part) for part in typing.get_args(hint))


def named(group: str, option: str) -> str:
    """The `_target_` of an option, or of the one that it is an override of. Composing all of them takes too long."""
    node = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text())
    parents = [entry for entry in node.get("defaults", []) if isinstance(entry, str) and entry[0] != "_"]
    return node.get("_target_") or named(group, *parents)


def every():
    """(group, option, class, its settings that are numbers) of every option but data sets and loggers."""
    for group in GROUPS:
        for option in options(group, [conf_dir()]):
            if group in ("dataset", "logger") or (option == "none" and group in LISTS):
                continue
            target = locate(named(group, option), group)
            known = {name: p for name, p in parameters(target)[0].items() if name not in CONTEXT}
            kinds = {n: type(p.default) if p.annotation is p.empty else p.annotation for n, p in known.items()}
            yield group, option, target, {name for name, kind in kinds.items() if numeric(kind)}


@pytest.fixture(scope="module")
def known():
    return list(every())


def test_every_setting_that_is_a_number_is_known(known):
    """One of a new name decides when something begins, and has a row above, or does not."""
    found = {name for *_, names in known for name in names}
    assert found <= TIMES | PLAIN, found - TIMES - PLAIN
    rows = {*ROWS, *(f"quantization={option} begin" for option in BEGIN)}
    wanted = {f"{group}={option} {name}" for group, option, _, names in known for name in names & TIMES}
    assert wanted <= rows, wanted - rows


# What asks for the position of training to key its draws, or because others do
KEYED = {"fgsm", "pgd", "smooth_adversarial", "eq_net", "ensloss", "spectral"}


def test_whatever_looks_at_the_clock_or_remembers_says_when_it_begins(known):
    """Also what has no setting for it: a number of epochs that is written in the code, a memory of samples."""
    looks = re.compile(r"\brun\.(count|steps|steps_per_epoch)\b|\bstep >= |\bbatch\.epoch\b|\bremember\(|index\]\s*=")
    checked = set()

    def base(cls) -> bool:
        return inspect.getfile(cls).endswith("__init__.py")

    for group, option, target, _ in known:
        if group in ("model", "optim", "augment", "schedule") or option in KEYED:
            continue
        own = [c for c in target.__mro__ if c.__module__.startswith("runner.") and not base(c) and c is not FedAvg]
        if any(looks.search(inspect.getsource(cls)) for cls in own):
            checked.add(f"{group}={option}")
            assert not base(next(c for c in target.__mro__ if "begins" in vars(c))), f"{group}={option}: no `begins`"
    assert {"hook=drw", "hook=saf", "loss=elr", "quantization=reste", "risk=dynamic_reweight"} <= checked
    assert issubclass(locate("runner.loss.elr.ELR", "loss"), Loss)
