"""Learned step size quantization."""

from typing import Annotated, Literal

from torch import Tensor, nn

from runner.core.batch import Batch
from runner.core.schema import Count, When
from runner.quantization import Begin, Transform
from runner.quantization.fake import Ends, Float, Target, attach
from runner.quantization.quantizer import FULL, Bits, Percent, Quantizer, Ranges


class LSQ(Transform):
    """LSQ (Esser et al., ICLR 2020, arXiv:1902.08153): weights and inputs of every Linear and Conv2d on a grid whose
    step is trained with the rest. Formula and gradient: `runner.quantization.quantizer.Levels` and `Quantizer`.

    As in the paper weights are signed, inputs unsigned where calibration finds none below zero, steps start at
    2 * mean|v| / sqrt(Q_P), their gradient is scaled by 1 / sqrt(N * Q_P), and first and last layer have 8 bits.
    The paper starts from a trained network and learns steps with the learning rate and the decay of everything else; so
    here, except that without a checkpoint training starts from scratch. At one bit, which the paper does not have, the
    levels of signed tensors are -s and s. The other settings make it the plain uniform quantizer that baselines use.

    Parameters
    ----------
    bits : of weights, and of inputs. Default 4.
    inputs : bits of the inputs instead; `float` leaves them in full precision. Default `same`.
    ends : bits of the first and the last layer; `same` as the others, `float` in full precision. Default 8.
    channels : a step for each output channel of the weights. Default false, as in the paper.
    affine : grids with an integer zero point, which stays as calibrated. Default false.
    learned : train the steps; else they follow the observed ranges. Default true.
    range : what the steps start from, or follow: `lsq`, `minmax`, `percentile` or `mse`. Default `lsq`.
    percentile : of the range of that name. Default 99.9.
    begin : share of the steps in full precision before quantization begins; see `Transform`. Default 0.
    calibration : training samples that set signs and steps of inputs. Default 128.

    Raises
    ------
    ValueError
        `affine` with `range=lsq` or one bit; from `prepare`, no layer to quantize.
    """

    def __init__(
        self,
        bits: Bits = 4,
        inputs: Literal["same", "float"] | Bits = "same",
        ends: Ends = 8,
        channels: bool = False,
        affine: bool = False,
        learned: bool = True,
        range: Ranges = "lsq",
        percentile: Annotated[Percent, When("range", "percentile")] = 99.9,
        begin: Begin = 0.0,
        calibration: Count = 128,
    ):
        if affine and range == "lsq":
            raise ValueError("affine=true needs another range than lsq, which has no offset: minmax, percentile or mse")
        if affine and 1 in (bits, inputs, ends):
            raise ValueError("affine=true needs two bits or more")
        self.bits, self.inputs, self.ends, self.channels = bits, inputs, ends, channels
        self.grid = {"affine": affine, "learned": learned, "range": range, "percentile": percentile}
        self.begin, self.calibration = begin, calibration

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        return attach(model, batch, self.bits, self.ends, self.quantizers, self.begin)

    def quantizers(self, target: Target, x: Tensor) -> tuple[nn.Module, nn.Module]:
        weights = Quantizer(target.weight, target.bits, channels=self.channels, weight=True, **self.grid)
        bits = self.input_bits(target)
        return weights, Float() if bits == FULL else Quantizer(x, bits, signed=target.signed, **self.grid)

    def input_bits(self, target: Target) -> int:
        if self.inputs == "float":
            return FULL
        return target.bits if self.inputs == "same" or target.end else self.inputs

    def convert(self, model: nn.Module, batch: Batch) -> nn.Module:
        return model
