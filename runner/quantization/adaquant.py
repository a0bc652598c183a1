"""Layer-wise calibration, and bits for each layer by an integer programme."""

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.core.batch import Batch
from runner.core.schema import Count, Natural, Positive, Range, When
from runner.core.work import uses
from runner.quantization.adaround import Several, rectifiers
from runner.quantization.deploy import PART, seen
from runner.quantization.fake import QUANTIZED, Target, targets
from runner.quantization.fold import fold
from runner.quantization.ptq import PTQ, settled
from runner.quantization.quantizer import FULL, Percent, Ranges

BASE = 8  # bits of the network in which one layer at a time gets fewer
LEAST = 1e-6  # the smallest increase of the loss that counts
SCALE = 1e6  # of the largest increase in the programme, whose solver stops at an absolute difference of 1e-6
NORM_SAMPLES = 200  # of a batch when BatchNorm is tuned
MOMENTUM, EPS = 0.1, 1e-5  # of that BatchNorm

Share = Annotated[float, Range(0, 1, open_low=True)]


class AdaQuant(PTQ):
    """AdaQuant (Hubara et al., 2020, arXiv:2006.10518; ICML 2021): quantize a trained network with a few samples.

    1. Calibration. BatchNorm is folded and grids are made as by `PTQ`; then the weights W, the bias b and the steps of
       weights and inputs of each layer minimise

           mean (f(Q(W) Q(x) + b) - f(y))^2,   y the layer's output in full precision

       straight through the rounding, by Adam. f is a ReLU that alone uses the output, else nothing. x is the layer's
       input behind the layers calibrated before, or, not `sequential`, in full precision. A layer that ends with a
       larger error on the calibration samples than it started with, rounded to nearest, stays as it started.
    2. Bits. With a budget, each layer l gets the bits k that solve

           minimise sum_l d(l, k_l)   subject to   sum_l cost(l, k_l) <= budget * cost of the full precision

       where d is the increase, 1e-6 at least, of the loss on the calibration samples where layer l alone has k bits in
       a network of 8, for which it is 0; layers are calibrated without `sequential` for this. cost is bits of weights,
       their steps and zero points not counted, or multiply-accumulates x bits of weights x bits of inputs, summed over
       all Linear and Conv layers, those that stay in full precision included. Solved exactly by HiGHS.
    3. BatchNorm tuning. Where a BatchNorm of scale g and shift h was folded into a quantized layer, one with
       mean h, variance g^2, scale sqrt(g^2 + 1e-5) and shift h, which changes nothing, is put behind it, sees the
       calibration samples once in batches of 200, with a momentum of 0.1, and is folded again. The integers of the
       weights stay as they are, their steps take the factor.
    4. Bias tuning. SGD on the biases of the quantized layers, all but the network's last, brings the outputs of the
       quantized network to those in full precision: KL divergence of their softmax, averaged over samples and classes.
       What ends further off on the calibration samples than it started is undone.

    The paper's text was not at hand; steps, defaults and constants are those of the authors' code (itayhubara/CalibTIP:
    utils/adaquant.py, utils/absorb_bn.py, trainer.py, main.py, mpip_compression_pytorch_multi.py, scripts/), which
    learns ranges, 2^bits - 1 steps of a grid: the rates of steps are divided by as much. Different here:

    - The zero point stays as calibrated, there it is learned; grids start from `range`, there from the extremes.
    - There biases have as many bits as weights and inputs together, here they are in full precision.
    - Its pipeline with the programme puts together the layers that the programme compared; `sequential` calibrates
      anew with the bits found, which there is a pipeline of its own, for bits given from outside.
    - `steps=0` leaves out the first step: there the light pipeline, which tunes no bias.
    - The loss of the second step is the cross-entropy, with the labels of the calibration samples. Where targets are
      no class ids it is the squared difference from the outputs in full precision, for the fourth step too.

    Parameters
    ----------
    bits : of weights, 2 to 8, without a budget. Default 4.
    inputs, ends, percentile, calibration : see `PTQ`.
    channels, affine, range : see `PTQ`. Both true as in the code; default `mse`.
    budget : share of the full precision's cost, or null for `bits` in every layer. Default null.
    of : what the budget is of: `size` or `bit_operations`. Default `size`.
    candidates : bits that the programme chooses from, of inputs too where `inputs` is `same`; `ends` are fixed unless
        they are `same`. Default 2 to 8.
    steps : for every layer, and every candidate. Default 1000.
    lr : of the weights. Default 1e-5.
    lr_bias : default 1e-3.
    lr_weights, lr_inputs : of the ranges of weights and inputs. Default 1e-3 and 0.1.
    samples : of a batch, also when biases are tuned. Default 50.
    sequential : see above. Default true.
    norms : tune BatchNorm. Default true.
    tune : steps of the biases. Default 800.
    lr_tune : of SGD there. Default 0.1.

    Raises
    ------
    ValueError
        `affine` with `range=lsq`; `norms` without `channels`; no candidates; from `prepare`, no layer to quantize, or a
        budget that not even the fewest bits meet.
    """

    def __init__(
        self,
        bits: Annotated[Several, When("budget", None)] = 4,
        inputs: Literal["same", "float"] | Several = "same",
        ends: Literal["float", "same"] | Several = 8,
        channels: bool = True,
        affine: bool = True,
        range: Ranges = "mse",
        percentile: Annotated[Percent, When("range", "percentile")] = 99.9,
        budget: Share | None = None,
        of: Annotated[Literal["size", "bit_operations"], When("budget", None, but=True)] = "size",
        candidates: Annotated[list[Several], When("budget", None, but=True)] = [2, 3, 4, 5, 6, 7, 8],  # noqa: B006 (only read)
        steps: Natural = 1000,
        lr: Positive = 1e-5,
        lr_bias: Positive = 1e-3,
        lr_weights: Positive = 1e-3,
        lr_inputs: Positive = 0.1,
        samples: Count = 50,
        sequential: bool = True,
        norms: bool = True,
        tune: Natural = 800,
        lr_tune: Annotated[Positive, When("tune", 0, but=True)] = 0.1,
        calibration: Annotated[int, Range(2)] = 1024,  # one sample has no variance
    ):
        super().__init__(bits, inputs, ends, channels, affine, range, percentile, calibration)
        if norms and not channels:
            raise ValueError("norms=true needs channels=true: new statistics change the step of each output channel")
        if not candidates:
            raise ValueError("candidates is empty, and a budget needs some")
        self.budget, self.of, self.candidates = budget, of, sorted(set(candidates))
        self.steps, self.samples, self.sequential = steps, samples, sequential
        self.lr, self.lr_bias, self.lr_weights, self.lr_inputs = lr, lr_bias, lr_weights, lr_inputs
        self.norms, self.tune, self.lr_tune = norms, tune, lr_tune

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        chosen = targets(model, batch, self.bits, self.ends)
        if self.budget is not None:  # said before training
            self.costs(copy.deepcopy(model).eval(), chosen, batch.x)
        return model

    def convert(self, model: nn.Module, batch: Batch) -> nn.Module:
        full = copy.deepcopy(model)
        folded = fold(full, batch.x[:2])
        full.requires_grad_(False)
        with settled(full):
            chosen = targets(full, batch, self.bits, self.ends)
        rectify = rectifiers(full, batch.x[:2])
        quantized, layers = copy.deepcopy(full), {}
        if self.budget is not None:
            made = self.candidate_layers(full, chosen, rectify, batch.x)
            bits = self.allocate(full, chosen, made, batch)
            chosen = {name: replace(target, bits=bits[name]) for name, target in chosen.items()}
            if not self.sequential:
                layers = {name: made[name][bits[name]] for name in chosen}
        for name, target in chosen.items():
            if name not in layers:
                x, wanted = seen(full, target.layer, batch.x)
                layers[name] = self.rounded(target, x)
                if self.sequential:
                    x, _ = seen(quantized, quantized.get_submodule(name), batch.x)
                self.learn(layers[name], x, wanted, name in rectify)
            quantized.set_submodule(name, layers[name])
        if self.norms:
            norms = {name: model.get_submodule(norm) for norm, name in folded.items() if name in chosen}
            renormalize(quantized, norms, batch.x)
        tuned = list(layers.values()) if self.ends == "float" else list(layers.values())[:-1]
        self.tune_biases(full, quantized, [layer.bias for layer in tuned if layer.bias is not None], batch)
        return quantized

    # ---- calibration

    def rounded(self, target: Target, x: Tensor) -> nn.Module:
        """The layer rounded to nearest; x are its inputs in full precision."""
        layer = copy.deepcopy(target.layer)
        layer.__class__ = QUANTIZED[type(layer)]
        layer.quantize_w, layer.quantize_x = self.quantizers(target, x)
        return layer.eval().requires_grad_(False)

    def learn(self, layer: nn.Module, x: Tensor, wanted: Tensor, rectify: bool) -> None:
        """Calibrate a layer that is rounded to nearest to these outputs, in place."""
        act = torch.relu if rectify else nn.Identity()
        rates = [(layer.weight, self.lr)]
        if layer.bias is not None:
            rates.append((layer.bias, self.lr_bias))
        for quantizer, lr in ((layer.quantize_w, self.lr_weights), (layer.quantize_x, self.lr_inputs)):
            if quantizer.bits != FULL:
                rates.append((quantizer.scale, lr / (2**quantizer.bits - 1)))

        def error(rows: Tensor) -> Tensor:
            return (act(layer(x[rows])) - act(wanted[rows])).square().mean()

        optimizer = torch.optim.Adam([{"params": [value], "lr": lr} for value, lr in rates], fused=True)
        descend([value for value, _ in rates], optimizer, error, x, self.samples, self.steps)

    def tune_biases(self, full: nn.Module, quantized: nn.Module, biases: list[Tensor], batch: Batch) -> None:
        """The fourth step, in place."""
        wanted = logits(full, batch.x)

        def apart(rows: Tensor) -> Tensor:
            made = quantized(batch.x[rows]).logits
            if class_ids(batch.y):
                return F.kl_div(made.log_softmax(-1), wanted[rows].softmax(-1), reduction="none").mean()
            return F.mse_loss(made, wanted[rows])

        if biases:
            descend(biases, torch.optim.SGD(biases, self.lr_tune), apart, batch.x, self.samples, self.tune)

    # ---- bits

    def costs(self, model: nn.Module, chosen: dict[str, Target], x: Tensor) -> tuple[dict[str, dict[int, int]], float]:
        """What every Linear and Conv layer costs with each number of bits that it may have, and what all may cost.

        Raises ValueError where the fewest bits cost more.
        """
        table, whole = {}, 0
        for name, times in uses(model, x).items():
            weights = model.get_submodule(name).weight.numel()
            options = {FULL: FULL}
            if target := chosen.get(name):
                options = {k: self.input_bits(replace(target, bits=k)) for k in self.options(target)}
            table[name] = {k: self.cost(weights, times, k, inputs) for k, inputs in options.items()}
            whole += self.cost(weights, times, FULL, FULL)
        smallest = sum(min(costs.values()) for costs in table.values()) / whole
        if smallest > self.budget:
            least = math.ceil(smallest * 1e4) / 1e4
            raise ValueError(
                f"budget={self.budget:g} cannot be met: the smallest {self.of} possible is {least:g} of full "
                f"precision's, with ends={self.ends} and {min(self.candidates)} bits elsewhere"
            )
        return table, self.budget * whole

    def cost(self, weights: int, times: int, bits: int, inputs: int) -> int:
        return weights * bits * (times * inputs if self.of == "bit_operations" else 1)

    def options(self, target: Target) -> list[int]:
        return [target.bits] if target.end else self.candidates

    def candidate_layers(
        self, full: nn.Module, chosen: dict[str, Target], rectify: set[str], x: Tensor
    ) -> dict[str, dict[int, nn.Module]]:
        """Every layer with each number of bits that it may have, calibrated on inputs in full precision."""
        made: dict[str, dict[int, nn.Module]] = {}
        for name, target in chosen.items():
            given, wanted = seen(full, target.layer, x)
            options = self.options(target)
            made[name] = {}
            for k in options if target.end else {*options, BASE}:
                made[name][k] = layer = self.rounded(replace(target, bits=k), given)
                self.learn(layer, given, wanted, name in rectify)
        return made

    def allocate(self, full: nn.Module, chosen: dict[str, Target], made: dict, batch: Batch) -> dict[str, int]:
        """The bits of every layer, by the programme."""
        table, limit = self.costs(full, chosen, batch.x)
        base = copy.deepcopy(full)
        for name, target in chosen.items():
            base.set_submodule(name, made[name][target.bits if target.end else BASE])
        start = self.loss(full, base, batch)
        increase = {name: dict.fromkeys(costs, 0.0) for name, costs in table.items()}
        for name, target in chosen.items():
            before = base.get_submodule(name)
            for k in () if target.end else self.candidates:
                if k != BASE:
                    base.set_submodule(name, made[name][k])
                    increase[name][k] = max(self.loss(full, base, batch) - start, LEAST)
            base.set_submodule(name, before)
        found = programme(
            [list(by.values()) for by in increase.values()], [list(by.values()) for by in table.values()], limit
        )
        return {name: list(costs)[k] for (name, costs), k in zip(table.items(), found, strict=True) if name in chosen}

    def loss(self, full: nn.Module, model: nn.Module, batch: Batch) -> float:
        found = logits(model, batch.x)
        if class_ids(batch.y):
            return F.cross_entropy(found, batch.y).item()
        return F.mse_loss(found, logits(full, batch.x)).item()


def class_ids(y: Tensor) -> bool:
    return y.dim() == 1 and not y.is_floating_point()


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part).logits for part in x.split(PART)])


def descend(params: list[Tensor], optimizer, error, x: Tensor, samples: int, steps: int) -> None:
    """Steps of the optimizer on error(rows) of batches of x; undone if the error on all of it is larger at the end."""

    def overall() -> float:
        with torch.no_grad():
            return sum(error(rows).item() * len(rows) for rows in torch.arange(len(x), device=x.device).split(PART))

    draw, before, start = torch.Generator().manual_seed(0), [value.clone() for value in params], overall()
    for value in params:
        value.requires_grad_(True)
    for _ in range(steps):
        rows = torch.randperm(len(x), generator=draw)[:samples].to(x.device)
        with torch.enable_grad():
            loss = error(rows)
        for value, grad in zip(params, torch.autograd.grad(loss, params, allow_unused=True), strict=True):
            value.grad = grad
        optimizer.step()
    for value in params:
        value.requires_grad_(False)
        value.grad = None
    if not overall() <= start:
        for value, old in zip(params, before, strict=True):
            value.copy_(old)


def programme(increase: list[list[float]], cost: list[list[int]], limit: float) -> list[int]:
    """For every layer the choice with which the sum of increases is least and that of costs at most the limit.

    increase, cost : for every layer one number for each of its choices.

    Raises ValueError where no choice meets the limit.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    layer = np.repeat(np.arange(len(cost)), [len(row) for row in cost])
    gain, price = np.concatenate(increase), np.concatenate(cost).astype(float)
    gain, most = gain * (SCALE / max(gain.max(), LEAST)), price.max()
    constraints = [
        LinearConstraint(layer == np.arange(len(cost))[:, None], 1, 1),
        LinearConstraint(price[None] / most, ub=limit / most),
    ]
    while True:
        found = milp(gain, integrality=1, bounds=Bounds(0, 1), constraints=constraints, options={"mip_rel_gap": 0})
        if found.x is None:
            raise ValueError(f"no choice costs {limit:g} or less: the least is {sum(map(min, cost))}")
        chosen = [int(found.x[layer == k].argmax()) for k in range(len(cost))]
        if sum(row[k] for row, k in zip(cost, chosen, strict=True)) <= limit:
            return chosen
        # over the limit by less than the solver's tolerance: not this one
        constraints.append(LinearConstraint((found.x > 0.5)[None], ub=len(cost) - 1))


@torch.no_grad()
def renormalize(model: nn.Module, norms: dict[str, nn.Module], x: Tensor) -> None:
    """The third step, in place: `norms` are the BatchNorm layers that were folded, by the layer that took them up."""
    handles, parts = [], {}
    for name, norm in norms.items():
        layer = model.get_submodule(name)
        scale = torch.ones_like(layer.bias) if norm.weight is None else norm.weight.detach()
        shift = torch.zeros_like(layer.bias) if norm.bias is None else norm.bias.detach()
        parts[name] = mean, var, scale, shift = shift.clone(), scale.square(), (scale.square() + EPS).sqrt(), shift
        handles.append(layer.register_forward_hook(partial(normalized, *parts[name])))
    try:
        for part in x.split(NORM_SAMPLES)[: max(len(x) // NORM_SAMPLES, 1)]:
            model(part)
    finally:
        for handle in handles:
            handle.remove()
    for name, (mean, var, scale, shift) in parts.items():
        layer = model.get_submodule(name)
        factor = scale / (var + EPS).sqrt()
        layer.bias.copy_((layer.bias - mean) * factor + shift)
        factor = factor.view(-1, *[1] * (layer.weight.dim() - 1))
        for value in (layer.weight, layer.quantize_w.scale):
            value.mul_(factor)


def normalized(mean: Tensor, var: Tensor, scale: Tensor, shift: Tensor, layer: nn.Module, _, made: Tensor) -> Tensor:
    """The output of a layer behind BatchNorm; a forward hook but for the first four arguments."""
    return F.batch_norm(made, mean, var, scale, shift, training=True, momentum=MOMENTUM, eps=EPS)
