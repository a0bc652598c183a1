"""EQ-Net: one network whose weights serve several bit widths."""

import copy
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from runner.core import keyed
from runner.core.batch import Batch, Output, Pass
from runner.core.precision import wide
from runner.core.schema import Count, Fraction, NonNegative, Positive, Range
from runner.core.weights import Weights, column
from runner.hook import Hook
from runner.loss import Loss
from runner.quantization import Begin, Transform
from runner.quantization.fake import Ends, Float, Target, attach, now_quantized
from runner.quantization.fold import estimate
from runner.quantization.quantizer import SMALLEST, Codes, Levels, Quantizer, Ranges
from runner.sharpness import Closure, Sharpness
from runner.transform.maps import effective

Width = Annotated[int, Range(2, 8)]
UNIFORM = 1.8  # kurtosis of a uniform distribution, 9/5


class Elastic(nn.Module):
    """A learned quantizer (see `Quantizer`) with a step for each of several widths, in ascending order.

    plan : which of them it uses, for every pass of a training step; the last entry is for everything else.
    turn : the entry in use.
    """

    turn = -1

    def __init__(self, x: Tensor, bits: list[int], plan: list[int], **settings):
        super().__init__()
        self.bits, self.settings = bits, settings
        each = self.each(x)
        self.scale = nn.Parameter(torch.stack([one.scale.detach() for one in each]))
        for name in ("low", "high", "g"):
            self.register_buffer(name, torch.stack([getattr(one, name) for one in each]), persistent=name != "g")
        self.register_buffer("unit", x.new_tensor([2.0**-width for width in bits]), persistent=False)
        self.register_buffer("plan", torch.tensor(plan, device=x.device), persistent=False)

    def each(self, x: Tensor) -> list[Quantizer]:
        return [Quantizer(x, bits, **self.settings) for bits in self.bits]

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        self.scale.copy_(torch.stack([one.scale for one in self.each(x)]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        at = self.plan[self.turn].view(1)  # a tensor: runs side by side draw their own
        tables = self.scale, self.low, self.high, self.g, self.unit
        scale, low, high, g, unit = (table.index_select(0, at)[0] for table in tables)
        scale = scale.abs().clamp(min=SMALLEST)
        scale = scale.detach() + g * (scale - scale.detach())
        return Levels.apply(wide(x), scale, low, high, 1.0, False) * unit, scale / unit

    def codes(self, x: Tensor) -> Codes:
        return self.fixed(int(self.plan[self.turn])).codes(x)

    @torch.no_grad()
    def fixed(self, at: int) -> Quantizer:
        """The quantizer of one width."""
        scale = self.scale[at]
        made = Quantizer(scale if scale.dim() else scale.view(1), self.bits[at], **self.settings | {"range": "minmax"})
        made.scale.copy_(scale), made.g.copy_(self.g[at])
        return made


def elastic(model: nn.Module) -> list[Elastic]:
    return [module for module in model.modules() if isinstance(module, Elastic)]


def turn(model: nn.Module, number: int) -> None:
    for quantizer in elastic(model):
        quantizer.turn = number


class SubNetworks(Sharpness):
    """Mixed into the run's sharpness method: for each of its passes one of every sub-network, whose losses and
    gradients are added up. So the method works on their sum. The closure is `runner.engine.trainer.Closure`.

    passes : sub-networks of a step. measured : the one that is evaluated; None where a pass of its own must be made for
    the statistics of BatchNorm.
    """

    passes: int = 1
    measured: int | None = 0

    def __call__(self, closure: Closure, weights: Weights) -> Pass:
        run, live = closure.run, closure.live
        if not now_quantized(run.model):
            return super().__call__(closure, weights)

        def every(*args, **kwargs) -> Pass:
            nonlocal live
            if live and self.measured is None and run.norms:
                turn(run.model, -1)
                closure(*args, **kwargs, live=True)
            grad, whole, guide = torch.zeros_like(weights.grad), None, None
            for number in range(self.passes):
                turn(run.model, number)
                found = closure(*args, **kwargs, guide=guide, live=live and number == self.measured)
                grad += weights.grad
                guide = found.out.logits
                whole = found if whole is None else plus(whole, found)
            weights.grad.copy_(grad)
            live = False
            return whole

        try:
            return super().__call__(every, weights)
        finally:
            turn(run.model, -1)


def plus(a: Pass, b: Pass) -> Pass:
    """The sum of two passes, with the output of the first."""
    return Pass(a.loss + b.loss, a.out, None if a.grad is None else a.grad + b.grad)


class Guided(Loss):
    """Mixed into the run's loss: in passes with a guide, (1 - guidance) of it and `guidance` of the divergence."""

    guidance: float = 0.0

    def forward(self, out: Output, batch: Batch) -> Tensor:
        losses = super().forward(out, batch)
        if "guide" not in batch.more:
            return losses
        return (1 - self.guidance) * losses + self.guidance * divergence(out.logits, batch.more["guide"])


@cache
def guided(kind: type[Loss]) -> type[Loss]:
    """One class for all runs with this loss: those that are trained side by side must not differ in it."""
    return type(kind.__name__, (Guided, kind), {})


def divergence(logits: Tensor, guide: Tensor) -> Tensor:
    """KL(softmax(guide) || softmax(logits)) over the last axis."""
    p, q = (wide(z).log_softmax(-1) for z in (guide, logits))
    return (p.exp() * (p - q)).sum(-1)


def moments(w: Tensor) -> tuple[Tensor, Tensor]:
    """Skewness and kurtosis of all elements: means of the third and fourth powers of (w - mean) / std."""
    w = wide(w).flatten()
    centred = w - w.mean()
    variance = centred.square().sum() / max(len(w) - 1, 1)
    z = centred * variance.clamp(min=1e-16).rsqrt()
    return z.pow(3).mean(), z.pow(4).mean()


class EQNet(Transform, Hook):
    """EQ-Net (Xu et al., ICCV 2023, arXiv:2308.07650): one set of weights and, in every layer, a learned step (LSQ) for
    each of several bit widths. A training step takes the gradient of

        R + L(1) + sum over k = 2 .. subnets of  (1 - alpha) L(k) + alpha * mean of KL(p(k - 1) || p(k))
        R = mean over layers of  kurtosis * (K - 1.8)^2 + skewness * S^2
        S = mean(z^3), K = mean(z^4), z = (w - mean) / std

    Sub-network 1 has the most bits, the last one the fewest, and those between have bits that are drawn for the weights
    and the inputs of every layer. p(k - 1) are class probabilities, without gradient: the paper's group progressive
    guidance. R is its regularisation of the weights' distribution; a uniform one has K = 1.8. Then every gradient is
    clipped to [-clip, clip].

    Settled from the authors' code (xuke225/EQ-Net: runner/trainer.py, runner/criterion.py, module, configs): all of the
    above and the defaults, where 0.015 is the kurtosis's rate and 1 the skewness's; std is the unbiased one; R leaves
    out the network's first layer; the temperature of the KL is 1; the first and the last layer keep 8 bits (in the
    largest sub-network they have the largest width, which is 8 too). The paper's text could not be read beyond its
    introduction.

    Done otherwise here:

    - Bits alone are elastic. The paper's sub-networks differ also in whether steps are per channel and have an offset.
      Its search for mixed precision with a predictor of accuracy is not part of this.
    - Training starts from scratch, the paper's from a trained network, and steps start as LSQ's; in the code they have
      the least error to the power of 2.4, to which `range=mse` comes close, but calibration then takes long. Their
      gradients are scaled as in LSQ; the code counts all inputs of a batch, and steps per channel twice.
    - The code's BatchNorm sees all passes, and is estimated anew before a width is evaluated. Here the running
      statistics are those of the width that is deployed, which costs one pass more a step where that is neither the
      smallest nor the largest; for the other widths, and full precision, they are estimated on the calibration samples
      at the end.

    L is what the run minimises: the mixture is made sample by sample before the risk, and penalties of hooks count in
    every pass. A sharpness method perturbs the sum of all. Draws depend on the seed and the step alone, and
    in a federation on the client. With one width
    there is one pass. The training loss that is recorded is the sum above and the training accuracy the largest
    sub-network's; what is evaluated, deployed and saved as best goes by the deployed width. `widths` in result.json has
    the measures at every width.

    Parameters
    ----------
    bits : the widths. Default 2 to 8.
    deploy : the width that is evaluated and deployed. Default null: the smallest.
    inputs : `same`, as elastic as weights, or `float`. Default `same`.
    ends : bits of the first and the last layer; `same` as the others, `float` in full precision. Default 8.
    channels : a step for each output channel of the weights. Default false.
    subnets : passes of a step; 2 is without random ones. Default 3.
    guidance : alpha. Default 0.5.
    kurtosis, skewness : rates in R. Default 0.015 and 1.
    clip : default 1; null leaves gradients as they are.
    range : what the steps start from; see `LSQ`. Default `lsq`.
    begin : share of the steps in full precision before quantization begins; see `Transform`. Default 0.
    calibration : training samples that set signs and steps of inputs. Default 256.

    Raises
    ------
    ValueError
        Widths that are not ascending, a `deploy` that is none of them; from `prepare`, no layer to quantize or none but
        the first and the last; guidance where the targets are not classes.
    """

    replicas = True
    padding = True  # the penalty is one of the weights

    def __init__(
        self,
        bits: list[Width] = (2, 3, 4, 5, 6, 7, 8),
        deploy: Width | None = None,
        inputs: Literal["same", "float"] = "same",
        ends: Ends = 8,
        channels: bool = False,
        subnets: Annotated[int, Range(2)] = 3,
        guidance: Fraction = 0.5,
        kurtosis: NonNegative = 0.015,
        skewness: NonNegative = 1.0,
        clip: Positive | None = 1.0,
        range: Ranges = "lsq",
        begin: Begin = 0.0,
        calibration: Count = 256,
    ):
        if not bits or list(bits) != sorted(set(bits)):
            raise ValueError(f"bits={list(bits)} must be widths in ascending order")
        if deploy is not None and deploy not in bits:
            raise ValueError(f"deploy={deploy} is none of bits={list(bits)}")
        self.bits, self.deployed = list(bits), 0 if deploy is None else list(bits).index(deploy)
        self.inputs, self.ends, self.channels, self.range = inputs, ends, channels, range
        self.passes = subnets if len(bits) > 1 else 1
        self.guidance, self.kurtosis, self.skewness, self.clip = guidance, kurtosis, skewness, clip
        self.begin, self.calibration = begin, calibration

    # ---- the model

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        self.names: list[str] = []  # of the layers, in the order in which the batch passes them
        model = attach(model, batch, self.bits[-1], self.ends, self.quantizers, self.begin)
        if not elastic(model):
            raise ValueError(
                f"no layer has several widths: {' and '.join(self.names)} are the first and the last, which have "
                f"ends={self.ends} bits; take ends=same or a deeper model"
            )
        if self.ends != "float":
            del self.names[0]
        return model

    def quantizers(self, target: Target, x: Tensor) -> tuple[nn.Module, nn.Module]:
        self.names.append(target.name)
        last = len(self.bits) - 1
        plan = [last, *[0] * (self.passes - 1), self.deployed]

        def make(x: Tensor, **settings) -> nn.Module:
            settings["range"] = self.range
            if target.end and self.ends != "same":
                return Quantizer(x, target.bits, **settings)
            return Elastic(x, self.bits, plan, **settings)

        weights = make(target.weight, channels=self.channels, weight=True)
        return weights, Float() if self.inputs == "float" else make(x, signed=target.signed)

    def convert(self, model: nn.Module, batch: Batch) -> nn.Module:
        return self.fixed(model, self.deployed)

    def full(self, model: nn.Module, batch: Batch) -> nn.Module:
        made = super().full(model, batch)
        estimate(made, batch.x)
        return made

    def widths(self, model: nn.Module, batch: Batch) -> Iterator[tuple[int, nn.Module]]:
        for at, bits in enumerate(self.bits):
            made = self.fixed(model, at)
            if at != self.deployed:
                estimate(made, batch.x)
            yield bits, made

    @staticmethod
    def fixed(model: nn.Module, at: int) -> nn.Module:
        """A copy with one of the widths everywhere."""
        model = copy.deepcopy(model)
        for name, module in list(model.named_modules()):
            if isinstance(module, Elastic):
                model.set_submodule(name, module.fixed(at).train(module.training))
        return model

    # ---- training

    def start(self, run) -> None:
        if self.guidance and run.dataset.task != "classes":
            raise ValueError(
                f"quantization.guidance is for classes, and the targets are {run.dataset.task}; set it to 0"
            )
        if not isinstance(run.sharpness, SubNetworks):  # a federation starts its hooks anew for every client
            kind = type(run.sharpness)
            run.sharpness.__class__ = type(kind.__name__, (SubNetworks, kind), {})
            run.loss.__class__ = guided(type(run.loss))
        run.sharpness.passes, last = self.passes, len(self.bits) - 1
        run.sharpness.measured = 0 if self.deployed == last else self.passes - 1 if self.deployed == 0 else None
        run.loss.guidance = self.guidance

    def before(self, run) -> None:
        random, quantizers = max(self.passes - 2, 0), elastic(run.model)
        generator = keyed.generator(run.masks.seeds[0], "eq_net", run.count)
        for quantizer, drawn in zip(quantizers, generator.integers(len(self.bits), size=(len(quantizers), random))):
            quantizer.plan[1 : 1 + random] = torch.from_numpy(drawn)

    def loss(self, run, out: Output, batch: Batch) -> Tensor:
        """R, in the pass of the largest sub-network."""
        total = out.logits.new_zeros(())
        if "guide" in batch.more or not now_quantized(run.model):
            return total
        for name in self.names:
            skewness, kurtosis = moments(effective(run.model.get_submodule(name)))
            total = total + self.skewness * skewness.square() + self.kurtosis * (kurtosis - UNIFORM).square()
        return total / max(len(self.names), 1)

    def gradient(self, run) -> None:
        if self.clip is not None and now_quantized(run.model):
            bound = column(self.clip, run.weights.grad)
            run.weights.grad.clamp_(-bound, bound)
