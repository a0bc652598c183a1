"""A typed key that does nothing beside another is an error, or, where the run may be a cell of a sweep, a notice."""

import pytest

from runner.__main__ import main
from runner.command.build import locate, parameters
from runner.command.config import refuse_idle, refuse_typed, without_effect
from runner.command.listing import GROUPS, conf_dir, options
from runner.core.mistake import ConfigError
from runner.core.schema import When
from runner.engine.run import Job
from tests.tiny import compose

MANY = ("transform", "augment", "hook", "logger")


def declared():
    """(option, key) for every parameter of every option that acts only beside another's value."""
    for group in GROUPS:
        for option in options(group, [conf_dir()]):
            if option == "none" and group in MANY:
                continue
            more = {"hf": ["dataset.id=a/b"], "timm": ["model.name=resnet18"]}.get(option, [])
            config = compose(f"{group}={option}", *more)
            node = config[group][option] if group in MANY else config[group]
            for key, parameter in parameters(locate(node["_target_"], group))[0].items():
                extras = getattr(parameter.annotation, "__metadata__", ())
                if whens := [extra for extra in extras if isinstance(extra, When)]:
                    where = f"{group}.{option}" if group in MANY else group
                    yield [f"{group}={option}", *more], where, key, node, whens


def test_every_such_key_is_found_where_it_does_nothing_and_only_there():
    found = set()
    for words, where, key, node, whens in declared():
        for when in whens:
            assert when.key in node, (where, when.key)
        for acts in (True, False):
            changed = {when.key: other(when, acts) for when in whens}
            config = compose(*words)
            config = beside(config, where, changed)
            assert (f"{where}.{key}" in without_effect(config, [f"{where}.{key}=1"])) is not acts
            assert not without_effect(config, [])
        found.add(f"{where}.{key}")
    assert {"federated.local_epochs", "federated.alpha", "dataset.damage_seed", "loss.beta", "optim.dampening"} <= found


def beside(config: dict, where: str, changed: dict) -> dict:
    group, dot, option = where.partition(".")
    if not dot:
        return {**config, group: {**config[group], **changed}}
    return {**config, group: {**config[group], option: {**config[group][option], **changed}}}


def other(when: When, acts: bool):
    """A value beside which the key acts, or does not."""
    return when.values[0] if acts != when.but else "something else"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train.epochs=3", "train.steps=30"], "it acts where train.steps is null, and here train.steps=30"),
        (["train.steps=30", "train={epochs:3}"], "train.epochs does nothing here"),
        (["-m", "train.epochs=3", "train.steps=30,40"], "train.epochs does nothing here"),
        (["-m", "federated=fedavg", "train.epochs=3,4"], "train.epochs does nothing with federated=fedavg"),
        (["-m", "federated=fedavg", "federated.alpha=1,2"], "federated.alpha does nothing here: it acts where"),
        (["+experiment=pezeshki2021/table1", "train.epochs=3"], "train.epochs does nothing here"),
    ],
)
def test_a_command_in_which_a_key_acts_nowhere_is_refused(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and expected in line
    assert not list(tmp_path.iterdir())


def test_what_acts_in_one_cell_of_a_sweep_is_not_refused_and_the_other_cell_alone_says_it():
    words = ["federated=fedavg", "federated.alpha=1.0"]
    cells = [[*words, f"federated.partition={kind}"] for kind in ("iid", "dirichlet")]
    refuse_idle((compose(*cell), cell) for cell in cells)
    with pytest.raises(ConfigError, match="federated.alpha does nothing here"):
        refuse_idle([(compose(*cells[0]), cells[0])])
    (notice,) = [line for line in Job(compose(*cells[0]), cells[0]).trainer.notices if "alpha" in line]
    assert "it acts where federated.partition is dirichlet or dirichlet_clients or quantity" in notice
    assert not [line for line in Job(compose(*cells[1]), cells[1]).trainer.notices if "alpha" in line]


def test_steps_taken_back_leave_epochs_alone():
    words = ["train.steps=null", "train.epochs=3"]
    refuse_typed(compose(*words), words)
    with pytest.raises(ConfigError, match="train.epochs does nothing here"):
        refuse_typed(compose("train.steps=5", "train.epochs=3"), ["train.steps=5", "train.epochs=3"])


def test_noise_without_a_rate_is_said():
    job = Job(compose("dataset.noise=symmetric"), ["dataset.noise=symmetric"])
    assert "dataset.noise=symmetric changes no label, as dataset.noise_rate is 0" in job.trainer.notices
