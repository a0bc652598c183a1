"""A layer that starts at zero under every quantizer: it moves, and learns where it does in full precision."""

import math

import pytest
import torch
from torch import nn

from runner.command.listing import conf_dir, options
from runner.model.mlp import Mlp
from runner.quantization import dorefa, reste, self_compression
from runner.quantization.littlebit import Factors
from runner.quantization.quantizer import Quantizer
from tests.quantization.made import quantized
from tests.quantization.test_quantization import AFTER, NAMES
from tests.tiny import trainer

WORDS = ["dataset.subset=400", "train.batch_size=32", "train.epochs=12", "model.hidden=[16,16]", "optim=adam"]
WORDS += ["optim.lr=0.01"]


def words_of(name: str) -> list[str]:
    words = [*WORDS, f"quantization={name}"]
    if name not in ("none", "self_compression"):
        words.append("quantization.ends=same")
    return words + ["quantization.inputs=float"] * (name in ("reste", "biper"))  # binary ones of digits tell little


@pytest.fixture
def zeroed(monkeypatch):
    """A function after which perceptrons have zeros for the weights of one layer, and for its bias in the last one."""
    begin = Mlp.__init__

    def zero(layer: int, rows=slice(None)) -> None:
        def init(self, shape: tuple[int, ...], classes: int, hidden: list[int]):
            begin(self, shape, classes, hidden)
            linear = [module for module in self.modules() if isinstance(module, nn.Linear)][layer]
            nn.init.zeros_(linear.weight.data[rows])
            if layer == -1:
                nn.init.zeros_(linear.bias)

        monkeypatch.setattr(Mlp, "__init__", init)

    return zero


def train(run, epochs: int) -> None:
    for epoch in range(epochs):
        for batch in run.loader.epoch(epoch):
            run.step(batch)


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("name", ["none", *NAMES])
def test_a_layer_of_zeros_moves_and_learns(name, layer, zeroed):
    zeroed(layer)
    run = trainer(*words_of(name))
    own = list(quantized(run.model).values())[layer] if name != "none" else run.model.head
    start = {key: value.detach().clone() for key, value in own.named_parameters()}
    train(run, 1)
    for key, value in own.named_parameters():
        assert torch.isfinite(value).all() and not torch.equal(value, start[key]), key
    train(run, 11)
    assert torch.isfinite(run.weights.data).all()
    least = {"none": 0.85, "biper": 0.3}.get(name, 0.5)  # a dead layer has 0.1; drawn as usual biper has 0.48
    assert run.evaluate(run.dataset.test)["accuracy"] > least


def test_an_observed_range_of_zeros_follows(zeroed):
    zeroed(-1)
    run = trainer(*words_of("lsq"), "quantization.learned=false")
    train(run, 12)
    assert run.evaluate(run.dataset.test)["accuracy"] > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lsq", "gaqat", "eq_net", "self_compression"])
def test_a_vision_transformer_whose_head_starts_at_zero(name):
    words = ["model=timm", "model.name=test_vit", "+model.args={img_size:8,patch_size:2,weight_init:jax}"]
    run = trainer(*words, f"quantization={name}", "optim=adam", "optim.lr=0.002", "train.epochs=4")
    assert not run.model.head.weight.any()
    train(run, 4)
    assert run.evaluate(run.dataset.test)["accuracy"] > 0.3  # in full precision 0.53 then


@pytest.mark.parametrize("name", ["lsq", "gaqat", "eq_net", "self_compression"])
def test_a_step_for_each_channel_where_some_are_zero(name, zeroed):
    zeroed(-1, slice(3, 7))
    words = [] if name == "self_compression" else ["quantization.channels=true"]
    run = trainer(*words_of(name), *words)
    start = run.model.head.weight.detach()[3:7].clone()
    train(run, 12)
    assert ((run.model.head.weight[3:7] - start).abs() > 0.05).any(1).all()
    assert run.evaluate(run.dataset.test)["accuracy"] > 0.7


def test_inputs_of_zeros():
    """Behind a layer of zeros without a bias every input is zero when steps are calibrated. The step is that of inputs
    drawn from a standard normal distribution, to a tenth."""
    for signed in (True, False):
        drawn = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
        drawn = drawn if signed else drawn.abs()
        found, expected = (Quantizer(x, 4, signed=signed).scale.item() for x in (torch.zeros(64, 50), drawn))
        assert found == pytest.approx(expected, rel=0.1)


DRAWN = {
    **{
        f"{kind}, {range_}": lambda w, kind=kind, range_=range_: (
            Quantizer(w, 4, channels=kind == "channels", range=range_, affine=range_ == "minmax", weight=True).scale
        )
        for kind in ("tensor", "channels")
        for range_ in ("lsq", "minmax", "percentile", "mse")
    },
    "exponents": lambda w: self_compression.Weights(w, 8.0, None).start.exp2(),
    "dorefa, one bit": lambda w: dorefa.Weights(1)(w)[1],
    "reste": lambda w: reste.Weights(w, 1.5)(w)[1],
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_step_of_zeros_is_that_of_weights_as_torch_draws_them(name):
    torch.manual_seed(0)
    for layer in (nn.Linear(300, 40), nn.Conv2d(30, 40, 3)):
        expected = DRAWN[name](layer.weight).detach().double().mean()
        found = DRAWN[name](torch.zeros_like(layer.weight)).detach().double()
        assert found.min() == found.max()
        assert found.mean().item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("learned", [True, False])
def test_a_percentile_of_zeros_is_the_whole_range(learned):
    """Inputs of which one in a thousand is not zero, and the percentile leaves as many out."""
    x = torch.zeros(20, 100)
    x[3, 5], x[7, 50] = 1.5, 0.75
    made = [
        Quantizer(x, 4, signed=False, learned=learned, range=range_, percentile=99.5)
        for range_ in ("percentile", "minmax")
    ]
    scales = [one.present()[0].item() for one in made]
    assert scales[0] == scales[1] == pytest.approx(0.1)  # 1.5 / 15


@pytest.mark.parametrize("make", [dorefa.Weights(1), dorefa.Weights(4), reste.Weights(torch.zeros(1), 1.5)])
def test_what_is_not_a_number_does_not_pass_for_a_zero(make):
    levels, step = make(torch.tensor([[0.3, float("nan")], [0.1, -0.2]]))
    assert (levels * step).isnan().any()


def test_dorefas_weights_of_zeros():
    """The gradient is that of t / (2 M) at zero, M = tanh(1 / sqrt(fan-in)) for which fan-in 4 has tanh(0.5)."""
    w = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    levels, step = dorefa.Weights(4)(w)
    assert torch.isfinite(levels).all() and (levels * step).abs().max() <= 1 / 15 + 1e-12
    (slope,) = torch.autograd.grad((levels * step).sum(), w)
    torch.testing.assert_close(slope, torch.full_like(w, 1 / math.tanh(0.5)))


def test_factors_of_zeros():
    """The product is zero, every scale but u1 is not, the two pairs differ, and a row or column of zeros lives too."""
    w = torch.zeros(24, 40)
    one, two = (Factors(w, 8, 100.0, seed=seed) for seed in (0, 1))
    assert not one.decode().any() and not two.decode().any()
    assert one.v1.all() and one.u2.all() and one.v2.all() and not torch.equal(one.U, two.U)
    w = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    w[3], w[:, 5] = 0, 0
    some = Factors(w, 8, 100.0, seed=0)
    v, u = some()
    grads = torch.autograd.grad(((u @ v) * torch.randn(24, 40)).sum(), [some.u1, some.v2])
    assert grads[0][3] != 0 and grads[1][5] != 0


@pytest.mark.parametrize("name", AFTER)
def test_a_layer_of_zeros_is_deployed_as_one(name, zeroed):
    """It stays zero: training is in full precision and left it so."""
    zeroed(-1)
    few = {"adaround": ["quantization.steps=20"], "adaquant": ["quantization.steps=20", "quantization.tune=20"]}
    run = trainer(*WORDS, f"quantization={name}", *few.get(name, []))
    transform = build_of(name, few.get(name, []))
    batch = next(run.loader.epoch(0))
    model = transform.convert(run.model, batch)
    assert torch.isfinite(model(batch.x).logits).all()
    assert not model.head.codes().decode().any()


def build_of(name: str, words: list[str]):
    from runner.command.build import build
    from tests.tiny import compose

    return build(compose(*WORDS, f"quantization={name}", *words)["quantization"], "quantization")


def test_all_quantizers_are_here():
    assert {*NAMES, *AFTER, "none"} == set(options("quantization", [conf_dir()]))
