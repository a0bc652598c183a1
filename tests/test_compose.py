"""Every option trains; every pair of options trains; half a run plus its resumption is the whole run, bit for bit."""

import itertools

import pytest
import torch

from runner.command.listing import GROUPS
from runner.core.checkpoint import load
from runner.engine.assemble import prepare
from scripts.packing import NEEDS, forms
from tests.pairwise import pairwise
from tests.tiny import trainer

BASE = ["dataset.subset=24", "dataset.val=0.25", "train.batch_size=6", "train.steps=2", "train.eval_batch_size=512"]


def usable(group: str) -> list[str]:
    """Options that run on digits, 1x8x8 and without a network; test_dataset, test_model, test_places cover others."""
    others = ("gpt", "unet", "vgg16_bn") if group == "model" else ()
    return [o for o in forms(group) if (group != "dataset" or o == "digits") and o not in others]


# Losses that are not defined for the ten classes of the digits, or, as AnyLoss in fp16, have no gradient for one of ten
OTHER = {"ensloss": "breast_cancer", "anyloss": "breast_cancer", "asl_multilabel": "multi_digits"}
OTHER |= dict.fromkeys(["conr", "cs_ib", "squared", "absolute", "huber", "quantile", "gaussian_nll"], "diabetes")

# The passes that options take for one step, of which two tell as much as ten
ASCENTS = {"pgd": "hook.pgd.steps", "smooth_adversarial": "hook.smooth_adversarial.steps"}
ASCENTS |= {"robust_weight_perturbation": "sharpness.steps"}
ASCENTS |= {"wafl": "federated.climb_steps"}  # ten lead out of what fp16 can say


def words(group: str, option: str) -> list[str]:
    more = NEEDS.get(option, []) if group in ("model", "transform", "quantization", "loss") else []
    if group == "balance" and option != "none":  # of the digits' one objective and a penalty
        more = ["balance.of=terms", "+hook.pull._target_=tests.balance.made.Pull"]
    if (group, option) == ("sampler", "classes"):
        more = ["sampler.classes=3", "sampler.per_class=2"]  # BASE has six samples a batch
    if group == "federated" and option != "none":
        more = ["federated.clients=2", "federated.rounds=2", "federated.minimum=2"]
    if group == "augment" and option == "cutout":
        more = ["augment.cutout.size=4"]  # the default covers digits wholly
    if group == "loss" and option in OTHER:
        more = [f"dataset={OTHER[option]}"]
    if option in ASCENTS:
        more = [*more, f"{ASCENTS[option]}=2"]
    return [f"{group}={option}", *more]


def updates(run, count: int):
    """As the run's own training makes them: steps, or a federation's rounds."""
    if algorithm := run.hooks.named.get("federated"):
        for round_ in range(count):
            yield from algorithm.one_round(run, round_)
    else:
        for batch in itertools.islice(run.loader.epoch(0, 0), count):
            loss = run.step(batch)
            assert loss is None or torch.isfinite(loss)
            yield


def two_steps(*overrides: str):
    run = trainer(*BASE, *overrides)
    if run.precision.scale:
        run.precision.scale.value = 2.0**2  # the default is meant to overflow a few times before it settles
    before = run.weights.clone()
    assert sum(1 for _ in updates(run, 2)) == 2
    assert torch.isfinite(run.weights.data).all()
    assert not torch.equal(before, run.weights.data)
    return run


TOO_SMALL = {"lenet"}  # digits are, for it
SINGLES = [(g, o) for g in GROUPS if g not in ("dataset", "logger") for o in usable(g) if o not in TOO_SMALL]


@pytest.mark.parametrize(("group", "option"), SINGLES)
def test_every_option_trains_two_steps(group, option):
    two_steps(*words(group, option))


@pytest.mark.parametrize("quantization", [option for group, option in SINGLES if group == "quantization"])
def test_every_quantization_trains_with_optimizers_losses_and_clients(quantization):
    for chosen in itertools.product(("sgd", "adamw", "sam"), ("ce", "poly"), ("none", "fedavg")):
        pairs = zip(("quantization", "optim", "loss", "federated"), (quantization, *chosen), strict=True)
        two_steps(*(word for pair in pairs for word in words(*pair)))


SLOW = {*TOO_SMALL, "wrn_16_8", "timm", "resnet18", "preact_resnet18"}
AXES = {
    group: [o for o in usable(group) if o not in SLOW and (group != "loss" or o not in OTHER)]
    for group in GROUPS
    if group != "logger"
}
AXES["precision"] = ["fp32", "bf16", "fp16"]
AXES["accumulate"] = ["1", "2"]


# Losses that predict nothing, and of some the only model
BLIND = {"diffusion": "mlp_time", "wgan": "mlp_generator", "wgan_gp": "mlp_generator", "ntxent": None}
OWN = {model for model in BLIND.values() if model}


def refused(row: dict[str, str]) -> bool:
    """Pairs that do not go together, which the tests of their rooms see refused."""
    of = {"federated": "none", "quantization": "none", **row}.get
    apart = [
        of("sampler") == "classes" and of("accumulate") == "2",
        of("sampler") in ("balanced", "single", "classes") and of("federated") != "none",
    ]
    if of("gradient") == "forward":
        apart += [of("hook") == "smooth_adversarial"]  # whose own gradient is not differentiated by every network
        apart += [of("transform") == "lora"]  # nor, in bf16 and fp16, a normalisation whose gains are frozen
        apart += [of("balance", "none") != "none", of("quantization") not in ("none", "ptq", "adaround", "adaquant")]
    if of("transform") in ("lora", "magnitude"):
        apart += [of("quantization") in ("adapt", "biper", "self_compression", "littlebit")]
    apart += [of("transform", "none") != "none" and (of("loss") in BLIND or of("model") in OWN)]
    apart += [of("transform") == "magnitude" and of("federated") != "none"]
    apart += [of("transform") == "freeze" and (of("optim") == "muon" or of("quantization") == "adapt")]
    apart += [of("transform") == "groupnorm" and of("model", "resnet20") != "resnet20"]
    apart += [of("optim") == "muon" and of("federated") == "scaffold"]
    if of("loss") in BLIND or of("model") in OWN:
        apart += [of("quantization") != "none", of("augment") == "mixup", of("federated") == "fedce"]
        apart += [of("hook") in ("logit_z", "mesa", "saf", "smooth_adversarial", "spectral_decoupling")]
    if {"loss", "model"} <= row.keys():
        model = BLIND.get(of("loss"))
        apart += [of("model") != model if model else of("model") in OWN]
    if of("loss") in ("wgan", "wgan_gp") or of("model") == "mlp_generator":
        apart += [of("federated") != "none", of("gradient") == "forward", of("balance", "none") != "none"]
        apart += [of("risk") in ("cvar", "adaptive_k")]
    return any(apart)


ROWS = pairwise(AXES, refused)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row.values()))
def test_every_pair_of_options_trains_two_steps(row):
    overrides = [word for group, option in row.items() if group in GROUPS for word in words(group, option)]
    if row["model"] == "resnet20":
        overrides.append("model._target_=tests.model.made.Slim")  # convolutions in fp16 take long on a CPU
    two_steps(*dict.fromkeys(overrides), f"train.precision={row['precision']}", f"train.accumulate={row['accumulate']}")


def test_the_pairs_are_all_there():
    for (a, xs), (b, ys) in itertools.combinations(AXES.items(), 2):
        for x, y in itertools.product(xs, ys):
            assert refused({a: x, b: y}) or any(row[a] == x and row[b] == y for row in ROWS)


def everything(run) -> dict:
    state = run.state_dict()
    state.pop("seconds")
    return state


def same(a, b, path="") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


RESUMED = [(g, o) for g, o in SINGLES if o not in (*SLOW, "resnet20", "none") and g != "federated"]  # test_federated
FULL = ["augment=[crop_flip,cutout,mixup]", "augment.cutout.size=4", "hook=[ema,clip]", "optim=sam"]


def steps(run, count: int) -> None:
    """Train until `count` steps are done, wherever the run stands."""
    while run.count < count:
        for batch in run.loader.epoch(*divmod(run.count, run.steps_per_epoch)):
            run.step(batch)
            if run.count == count or run.count % run.steps_per_epoch == 0:
                break


def assert_resumed_equals_whole(overrides: list[str], stop_after: int, folder, workers=(4, 4, 4)) -> None:
    """Three epochs of four steps, against a part, a save and a fresh trainer that goes on."""
    base = ["dataset.val=0.25", "train.batch_size=6", "train.epochs=3", *overrides]
    whole, first, second = (trainer(*base, f"train.workers={count}", folder=folder) for count in workers)
    assert whole.steps_per_epoch == 4
    prepare(0, whole.train, whole.device)
    steps(whole, 12)
    prepare(0, first.train, first.device)
    steps(first, stop_after)
    first.save()
    torch.manual_seed(123)  # whatever the process did before
    second.load_state_dict(load(folder / "last.pt"))
    steps(second, 12)
    same(everything(whole), everything(second))


@pytest.mark.parametrize(
    "overrides",
    [words(g, o) for g, o in RESUMED]
    + [
        FULL,
        [*FULL, "model=resnet20"],
        [*FULL, "train.precision=fp16"],
        [*FULL, "dataset.noise=symmetric", "dataset.noise_rate=0.3"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("stop_after", [4, 6])  # at the end of an epoch, and within one
def test_half_a_run_plus_its_resumption_is_the_whole_run(overrides, stop_after, tmp_path):
    assert_resumed_equals_whole(["dataset.subset=32", *overrides], stop_after, tmp_path)


def test_streamed_runs_resume_with_any_number_of_workers(tmp_path):
    from tests.dataset.made import images, write

    for split, count in (("train", 32), ("test", 6)):
        file = tmp_path / "data" / "tiny" / f"{split}-00000-of-00001.parquet"
        write(file, images(count, (12, 12, 3)), [i % 3 for i in range(count)], names=["a", "b", "c"])
    stream = ["dataset=hf", "dataset.id=me/tiny", "dataset.stream=true", "dataset.size=8", "dataset.random_crop=true",
              "dataset.mean=[0.5]", "dataset.std=[0.25]", f"data_dir={tmp_path}/data", f"cache_dir={tmp_path}/cache",
              *FULL]  # fmt: skip
    assert_resumed_equals_whole(stream, 6, tmp_path, workers=(0, 2, 0))
