"""How many threads a run takes: a rule of the size of its work alone, and what the user says instead."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from runner.core import threads, work
from tests.conftest import ROOT
from tests.tiny import SMALL, trainer


@pytest.fixture
def two_allowed():
    before = threads.allowed()
    threads.allow(2)
    yield
    threads.allow(before)


@pytest.mark.usefixtures("two_allowed")
@pytest.mark.parametrize(
    ("wanted", "multiplications", "taken"),
    [("auto", threads.SMALL - 1, 1), ("auto", threads.SMALL, 2), (1, 1e12, 1), (3, 1, 3), (2, 1, 2)],
)
def test_the_rule(wanted, multiplications, taken):
    threads.take(wanted, multiplications)
    assert torch.get_num_threads() == taken and threads.allowed() == 2


def test_multiplications_are_those_of_the_layers():
    """By hand: 6 filters of 2 x 3 x 3 at 8 x 8 places of a stride of 2, in two groups; then 384 x 5."""
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(384, 5))
    assert work.multiplications(model, torch.zeros(3, 4, 16, 16)) == 6 * 2 * 9 * 64 + 384 * 5


@pytest.mark.usefixtures("two_allowed")
@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ([], 1),  # 64-16-10 in batches of 32
        (["train.batch_size=1294", "dataset.subset=null", "model.hidden=[1000,1000]"], 2),
        (["train.batch_size=1294", "dataset.subset=null", "model.hidden=[1000,1000]", "train.accumulate=100"], 1),
        (["train.threads=2"], 2),
    ],
    ids=["small", "large", "in small parts", "as said"],
)
def test_a_run_takes_what_its_passes_are_worth(words, taken):
    trainer(*SMALL, *words)
    assert torch.get_num_threads() == taken


@pytest.mark.usefixtures("two_allowed")
def test_the_next_run_in_the_process_may_have_all_again():
    trainer(*SMALL, "train.threads=1")
    trainer(*SMALL, "train.batch_size=1294", "dataset.subset=null", "model.hidden=[1000,1000]")
    assert torch.get_num_threads() == 2


def test_a_small_run_computes_the_same_however_many_cores_there_are():
    before, ends = threads.allowed(), []
    try:
        for count in (1, 2):
            threads.allow(count)
            run = trainer("model=cnn", "model.widths=[4,8]", "model.hidden=16", "dataset.subset=100", "train.epochs=1")
            for _ in run.updates(0, 0):
                pass
            ends.append(run.weights.data.clone())
    finally:
        threads.allow(before)
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("said", "found"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_do_not_spin_for_long_unless_the_user_says_so(said, found):
    """It is set before torch is loaded, which `import runner` does not do."""
    clean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    line = "import os, sys, runner; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", line], env={**clean, "PYTHONPATH": str(ROOT), **said}, capture_output=True, text=True
    )
    assert done.stdout.split() == [found, "False"], done.stderr
