"""What needs a CUDA device: `make gpu`. Each check is a function of the device, so that tests/test_bench.py can run the
cheap ones on the CPU and a mistake in them does not wait for a GPU."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runner.core import checkpoint
from runner.engine.trainer import Trainer
from runner.record.folder import Stopped
from scripts.bench.cases import CIFAR, Case, build
from tests.engine.test_passes import MODEL as DRAWING
from tests.engine.test_passes import advance
from tests.tiny import SMALL, trainer

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts, which an earlier test may cause
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here: this was not tested"),
]

RESNET = Case("resnet20", "resnet20", CIFAR, train=256, test=64, batch_size=64)


@pytest.fixture(autouse=True)
def _settings():
    """What a run sets for the whole process is undone."""
    before = torch.backends.cudnn.conv.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision = before
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


def mlp(device: str, *overrides: str) -> Trainer:
    return trainer(*SMALL, f"device={device}", "train.precision=fp32", *overrides)


def conv(device: str, *overrides: str) -> Trainer:
    """A small convolutional network on digits, with everything switched on that has a state."""
    words = ("model=cnn", "optim=sam", "hook=ema", "augment=[crop_flip,cutout]", "augment.cutout.size=4")
    return trainer(
        *words, "dataset.subset=200", "train.batch_size=32", "train.epochs=2", f"device={device}", *overrides
    )


def resnet(device: str, *overrides: str) -> Trainer:
    return build(RESNET, *overrides, device=device, folder=Path("unused"))[0]


def gradient(run: Trainer) -> dict[str, Tensor]:
    """The first step's gradient by parameter, in fp64 on the CPU. Convolutions are in true fp32, where cuDNN would take
    TF32: said here, as building a run sets torch's own choice."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    if run.precision.scale is not None:
        run.precision.scale.value = 2.0**10  # far from overflow: this is about rounding
    run.gradient(next(iter(run.loader.epoch(0))))
    return {name: view.double().cpu().clone() for name, view in run.weights.views(run.weights.grad)}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """|found - expected| / |expected| over all parameters."""
    error = sum((found[name] - expected[name]).square().sum() for name in expected)
    return (error / sum(value.square().sum() for value in expected.values())).sqrt().item()


# ---- random numbers


@pytest.mark.parametrize("layer", ["dropout", "functional dropout", "gaussian noise", "rrelu"])
def test_passes_of_a_step_draw_the_same_on_the_gpu(layer):
    words = [*DRAWING, f"+model.layer='{layer}'", "device=cuda", "train.precision=fp32", "train.deterministic=true"]
    plain, around = (advance(trainer(*words, *own))[0] for own in (["optim=sgd"], ["optim=sam", "sharpness.rho=0"]))
    assert torch.equal(plain, around)


# ---- precision

# Unit roundoffs are 2^-24 for fp32, 2^-11 for fp16, 2^-8 for bf16. They add up over layers, and a ReLU whose input
# changes its sign by rounding adds much more: on a CPU, resnet20 is 0.13 off in bf16, 0.05 in fp16, and 0.003 in fp32
# with another order of sums; the mlp 0.003 in bf16 and 0.0004 in fp16.
TOLERANCE = {
    "mlp": {"fp32": 1e-4, "fp16": 0.005, "bf16": 0.02},
    "resnet": {"fp32": 0.02, "fp16": 0.15, "bf16": 0.3},
}


def check_precision(model: Callable, device: str, precision: str) -> None:
    """The gradient in `precision` on the device is the CPU's in fp32, to rounding."""
    expected = gradient(model("cpu", "train.precision=fp32"))
    found = gradient(model(device, f"train.precision={precision}"))
    assert distance(found, expected) < TOLERANCE[model.__name__][precision]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("model", [mlp, resnet])
def test_gradients_agree(model, precision):
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU has no bf16")
    check_precision(model, "cuda", precision)


def test_auto_is_bf16_where_there_is_bf16():
    expected = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    assert trainer(*SMALL, "device=cuda").precision.name == expected


def check_overflow(device: str, *overrides: str) -> None:
    """At a scale of 2^40, steps are skipped with nothing changed until the scale is small enough; then it trains."""
    run = conv(device, "train.precision=fp16", *overrides)
    scale, batch = run.precision.scale, next(iter(run.loader.epoch(0)))
    scale.value = 2.0**40
    start = run.weights.clone()
    average = run.hooks.named["ema"].average.clone()
    skipped = 0
    while run.step(batch) is None:
        skipped += 1
        assert torch.equal(run.weights.data, start)
        assert torch.equal(run.hooks.named["ema"].average, average)
        assert not run.optimizer.state
        assert scale.value == 2.0 ** (40 - skipped)
        assert skipped < 40
    assert skipped == scale.skipped > 0
    assert run.count == skipped + 1
    assert not torch.equal(run.weights.data, start)
    for _ in range(5):
        run.step(batch)
    assert torch.isfinite(run.weights.data).all()


@pytest.mark.parametrize("overrides", [(), ("optim=sgd",), ("optim=adamw", "train.accumulate=2")])
def test_overflow_skips_the_step(overrides):
    check_overflow("cuda", *overrides)


# ---- speed settings compute the same


def check_same(device: str, setting: str) -> None:
    """The setting changes a gradient by no more than another order of the same sums does."""
    expected = gradient(resnet(device))
    assert distance(gradient(resnet(device, setting)), expected) < TOLERANCE["resnet"]["fp32"]


def test_compile_equals_eager():
    check_same("cuda", "train.compile=true")


def check_channels_last(device: str) -> None:
    check_same(device, "train.channels_last=true")
    run = resnet(device, "train.channels_last=true")
    assert next(iter(run.loader.epoch(0))).x.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_equals_contiguous():
    check_channels_last("cuda")


# ---- determinism and resuming


def check_deterministic(device: str, folder: Path, *overrides: str) -> None:
    """Two trainings give the same bits."""
    runs = []
    for name in ("a", "b"):
        (folder / name).mkdir()
        run = conv(device, "train.deterministic=true", *overrides)
        run.record.folder = folder / name
        run.fit()
        runs.append(run)
    first, second = runs
    assert torch.equal(first.weights.data, second.weights.data)
    assert first.last["train_loss"] == second.last["train_loss"]


def test_strict_determinism_of_resnet20():
    first, second = (gradient(resnet("cuda", "train.deterministic=true", "optim=sam")) for _ in range(2))
    assert distance(first, second) == 0


class StopAfter:
    """In the progress bar's place: asks for a stop after so many steps."""

    def __init__(self, run: Trainer, steps: int):
        self.run, self.left = run, steps

    def update(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.run.stop = "the test"


def check_resume(device: str, folder: Path, *overrides: str) -> None:
    """A training stopped within an epoch and taken up by another trainer ends with the bits of one that was not."""
    words = ("train.deterministic=true", *overrides)
    whole, half = conv(device, *words), conv(device, *words)
    for name, run in (("whole", whole), ("half", half)):
        (folder / name).mkdir()
        run.record.folder = folder / name
    whole.fit()
    half.progress = StopAfter(half, half.steps_per_epoch + 2)
    with pytest.raises(Stopped):
        half.fit()
    rest = conv(device, *words)
    rest.record.folder = folder / "half"
    rest.load_state_dict(checkpoint.load(folder / "half" / "last.pt"))
    assert 0 < rest.count == half.count < whole.steps
    rest.fit()
    assert torch.equal(rest.weights.data, whole.weights.data)
    assert torch.equal(rest.hooks.named["ema"].average, whole.hooks.named["ema"].average)
    for a, b in zip(_optimizer_tensors(rest), _optimizer_tensors(whole), strict=True):
        assert torch.equal(a, b)
    for key in ("train_loss", "train_accuracy", "test_accuracy", "test_nll"):
        assert rest.last[key] == whole.last[key]


def _optimizer_tensors(run: Trainer) -> list[Tensor]:
    states = run.optimizer.state_dict()["state"].values()
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "auto"])
def test_strict_determinism(tmp_path, precision):
    check_deterministic("cuda", tmp_path, f"train.precision={precision}")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "auto"])
def test_resume_bit_for_bit(tmp_path, precision):
    check_resume("cuda", tmp_path, f"train.precision={precision}")


# ---- data


def check_resident(device: str) -> None:
    """The pixels lie on the device as bytes, and batches come from there."""
    run = conv(device)
    kept = run.loader._train
    assert kept.x.dtype == torch.uint8
    assert {kept.x.device.type, kept.y.device.type} == {device}
    batch = next(iter(run.loader.epoch(0)))
    assert {batch.x.device.type, batch.y.device.type, batch.index.device.type} == {device}
    assert batch.x.dtype == torch.float32


def test_data_live_on_the_device():
    check_resident("cuda")


def test_a_step_does_not_wait_for_the_device():
    """Nothing in a plain step, augmentation included, copies to or from the host or asks for a value."""
    run = trainer(*SMALL, "device=cuda", "train.precision=fp32", "augment=crop_flip")
    batches = run.loader.epoch(0)
    run.step(next(batches))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            run.step(next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_augmentation(device: str, *augments: str) -> None:
    """The same samples with the same random numbers as on the CPU."""
    words = (*SMALL, f"augment=[{','.join(augments)}]", *["augment.cutout.size=4"] * ("cutout" in augments))
    there, here = (trainer(*words, f"device={name}").loader for name in (device, "cpu"))
    compared = 0
    for found, expected in zip(there.epoch(1), here.epoch(1), strict=True):
        assert torch.equal(found.index.cpu(), expected.index)
        torch.testing.assert_close(found.x.cpu(), expected.x, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.y.cpu(), expected.y)
        compared += len(expected)
    assert compared == 180


@pytest.mark.parametrize("augments", [("crop_flip",), ("cutout",), ("mixup",), ("crop_flip", "cutout", "mixup")])
def test_augmentation_draws_the_same_as_on_the_cpu(augments):
    check_augmentation("cuda", *augments)


# ---- memory


def peak(*overrides: str) -> float:
    """MiB at the most during three steps of resnet20 at batch 128, over what was there before it was built."""
    import gc

    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    case = Case("resnet20", "resnet20", CIFAR, train=512, test=64, batch_size=128)
    run, _ = build(case, *overrides, device="cuda", folder=Path("unused"))
    torch.cuda.reset_peak_memory_stats()
    for batch in run.loader.epoch(0):
        run.step(batch)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def test_memory_peak_of_resnet20():
    """What backward needs at batch 128 in fp32: the input of every convolution and of every BatchNorm. The 7, 6 and 6
    layers of the stages have outputs of 8, 4 and 2 MiB: 184 MiB. The rest is for cuDNN's workspaces."""
    assert peak() < 1024


def test_sam_needs_no_second_set_of_activations():
    plain = peak("optim=sgd", "train.deterministic=true")  # without the search for fast kernels and its workspaces
    assert peak("optim=sam", "train.deterministic=true") < 1.2 * plain
