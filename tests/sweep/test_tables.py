"""The tables of papers that come with runner: as printed, composed, and begun."""

import signal
import sys
import time

import pytest
import yaml

from runner.command.listing import conf_dir
from runner.sweep import experiment
from runner.sweep.paper import load
from scripts import gpu_tables
from scripts.packing import trainers
from tests.conftest import ROOT

PAPERS = ROOT.parent / "shared" / "papers" / "tables.yaml"  # not part of the repository


def error(rows, **params) -> float:
    return round(100 - one(rows, **params), 2)


def one(rows, method=None, **params) -> float:
    """The value of the only row with these."""
    found = [
        row["value"] for row in rows if method in (None, row["method"]) and params.items() <= row["params"].items()
    ]
    assert len(found) == 1, (method, params, found)
    return found[0]


def sam(row, column, rows):
    method, epochs = row.split(", ")
    aug = {"basic": "Basic", "Cutout": "Cutout"}[column]
    return error(rows, method=method, model="WRN-28-10", epochs=int(epochs.split()[0]), aug=aug)


def federated(name):
    parts = {"1 label per client": "1 label/client", "2 labels per client": "2 labels/client"}
    return lambda row, column, rows: one(rows, method=row, dataset=name, partition=parts.get(column, column))


def elr(row, column, rows):
    noise = "asym 0.4" if column.startswith("asym") else f"sym 0.{column[0]}"
    return one(rows, method="ELR", noise=noise)


def adaptive(row, column, rows):
    method, _, rho = row.partition(", radius ")
    return error(rows, method=method, **({"rho": float(rho)} if rho else {}))


def tail(row, column, rows):
    data, ratio = column.split(", ")
    return error(rows, method=row, dataset=data, imbalance="LT", ratio=int(ratio))


def saddle(data):
    return lambda row, column, rows: one(rows, method=row.replace("-", "+").replace(" ", ""), dataset=data)


def named(method, **params):
    return lambda row, column, rows: one(rows, method=method or row, **params)


SHORT = {"VGG-16": "VGG16", "ResNet-18": "ResNet18", "ResNet-50": "ResNet50", "ResNet-101": "ResNet101"}
SHORT |= {"PreActResNet-18": "PreActResNet18"}
LOSSES = {"CE": "Cross-Entropy", "LS 0.05": "LS-0.05", "FL 3": "FL-3"}
BINARY = {"ResNet-20, weights": ("ResNet-20", 32), "ResNet-20, weights and inputs": ("ResNet-20", 1)}
BINARY |= {"ResNet-18, weights and inputs": ("ResNet-18", 1)}


def calibration(row, column, rows):
    if column == "accuracy":
        return error(rows, method=LOSSES[row], model="ResNet-50")
    return one(rows, method=LOSSES[row], model="ResNet-50", temp_scaled=column == "ECE after scaling")


# experiment -> (ids in the file of printed tables, what a number of ours is there)
PRINTED = {
    "foret2021/table1_cifar10": ("sam_t1_cifar10", sam),
    "foret2021/table1_cifar100": ("sam_t1_cifar100", sam),
    "foret2021/table4_label_noise": (
        "sam_t4_labelnoise",
        lambda row, column, rows: one(rows, method=row.split(",")[0], noise=int(column[:2]) / 100),
    ),
    "davda54/wrn16_8": ("sam_wrn16_8_davda54", adaptive),
    "cao2019/table2_cifar_lt": ("ldam_t2_cifar_lt", tail),
    "rangwani2022/cifar10_lt": ("saddle_lt_sam", saddle("CIFAR-10-LT")),
    "rangwani2022/cifar100_lt": ("saddle_lt_sam", saddle("CIFAR-100-LT")),
    "du2022/table3": (
        "saf_t3_cifar",
        lambda row, column, rows: one(rows, method=row, dataset=column, model="ResNet-18"),
    ),
    "liu2020/cifar10": ("elr_cifar10", elr),
    "liu2020/cifar100": ("elr_cifar100", elr),
    "mukhoti2020/cifar10": ("focalcal_c10_error focalcal_c10_ece", calibration),
    "wu2023/cifar10": (
        "reste_c10",
        lambda row, column, rows: one(rows, model=BINARY[row][0], W=1, A=BINARY[row][1]),
    ),
    "zoo/cifar10": ("baseline_c10_zoo", lambda row, column, rows: one(rows, model=SHORT[row])),
    "zoo/cifar100": ("baseline_c100_zoo", lambda row, column, rows: error(rows, model=row)),
    "li2022/mnist": ("niid_flower", federated("MNIST")),
    "li2022/fashion_mnist": ("niid_flower", federated("Fashion-MNIST")),
    "li2022/cifar10": ("niid_flower", federated("CIFAR-10")),
}
PACKAGED = sorted(
    f"{path.parent.name}/{path.stem}"
    for path in (conf_dir() / "experiment").glob("*/*.yaml")
    if path.parent.name != "comparisons"
)


def test_every_table_is_compared_with_what_is_printed():
    assert set(PACKAGED) - set(PRINTED) == {"pezeshki2021/table1"}  # whose numbers are from the paper itself


@pytest.mark.parametrize("name", PRINTED)
def test_numbers_are_as_printed(name):
    if not PAPERS.exists():
        pytest.skip("the file of printed tables is not here")
    tables = {table["id"]: table["rows"] for table in yaml.safe_load(PAPERS.read_text())}
    ids, printed = PRINTED[name]
    _, made = load(name, [conf_dir()])
    count = 0
    for row, arm in made.rows.items():
        for column, number in arm.paper.items():
            rows = tables[ids.split()[-1 if "ECE" in column else 0]]
            assert number.value == pytest.approx(printed(row, column, rows), abs=1e-9), (row, column)
            count += 1
    assert count


@pytest.mark.parametrize("name", PACKAGED)
def test_every_row_takes_its_first_step(name, tmp_path):
    """On made-up images, with a small network; of a federation a round of two clients."""
    plan = experiment.Plan([f"+experiment={name}", f"outputs_dir={tmp_path}"], [conf_dir()])
    firsts = {row: next(iter(cells.values())) for (row, _), cells in plan.cells.items()}
    for cell in firsts.values():
        words = [word for word in cell.overrides if not word.startswith(("dataset.subset", "name="))]
        begun(words)


def begun(words: list[str]) -> None:
    own = ["train.batch_size=8", "train.epochs=200", "device=cpu", "train.eval_batch_size=8", "data_dir=null"]
    if any(word.startswith("model=") for word in words):  # the recipe is tried, and not its network of millions
        own.append("model._target_=tests.model.made.Slim")
    if any(word.startswith("federated.") for word in words):
        own += ["federated.clients=2", "federated.minimum=2", "federated.local_epochs=1", "federated.rounds=1"]
    (run,) = trainers([[*words, *own]])
    before = run.weights.clone()
    if federated := run.hooks.named.get("federated"):
        next(federated.one_round(run, 0))
    else:
        run.step(next(run.loader.epoch(0)))
    assert not run.weights.data.equal(before)


def test_a_gpu_is_given_every_table_and_stops_in_time(tmp_path, capfd, monkeypatch):
    assert {name for name, _ in gpu_tables.ORDER} == set(PRINTED)
    assert gpu_tables.main(["--minutes", "0"]) == 1
    count = len(gpu_tables.commands([]))
    assert f"{count} of {count} commands are not done; the same command goes on" in capfd.readouterr().out
    slow = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    begun = time.monotonic()
    assert gpu_tables.ran(slow, begun + 0.5) == -signal.SIGTERM
    assert time.monotonic() - begun < 30
    assert gpu_tables.ran([sys.executable, "-c", ""], begun + 60) == 0
