"""Full precision first, quantization later."""

from torch import Tensor, nn

from runner.core.batch import Batch
from runner.hook import Hook
from runner.quantization import opening
from runner.quantization.fake import Quantized, watch
from runner.transform.maps import effective


class Late(Hook):
    """Quantization that begins at a share of the training, with its scales calibrated then.

    Steps before ceil(begin * steps) are those of the model in full precision. Before that step learned scales, observed
    ranges and exponents are set from the weights as they are and from the calibration samples, as they would be at the
    start of training; the signs of inputs are those found there. The optimizer's state goes on. What an option does by
    schedules of its own (the power of ReSTE, the stages of BiPer) goes by the steps of the whole run, and what it adds
    to the loss or does with gradients begins with the quantization. The best epoch, by validation or test, may be one
    in full precision.

    Compute-optimal quantization-aware training (Dremov et al., ICLR 2026, arXiv:2509.22935) splits a training this way
    and fuses the cool-down of the learning rate with the quantized part: full precision ends at the constant learning
    rate, and quantized training decays from there, in the place of a cool-down, a new warm-up and a second decay: that
    is `schedule=wsd` with `schedule.begin` equal to `quantization.begin`. So much is settled by the abstract, public
    reviews and summaries of the paper; no code is public and its text could not be read, so that the shape of its decay
    is not settled, nor whether it resets the optimizer. By a summary its share of quantized steps is exp(-a / log S),
    a = 6.7297, with S training tokens for each byte of quantized parameters; that was fitted to language models.
    """

    def __init__(self, begin: float, batch: Batch):
        self.begin, self.x = begin, batch.x

    def before(self, run) -> None:
        first = opening(self.begin, run.steps)
        layers = {name: layer for name, layer in run.model.named_modules() if isinstance(layer, Quantized)}
        if run.count == first:
            switch(layers, False)
            watch(run.model, self.x, layers, lambda name, x: calibrate(layers[name], x))
        switch(layers, run.count >= first)


def switch(layers: dict[str, nn.Module], on: bool) -> None:
    for layer in layers.values():
        if layer.quantizing != on:
            layer.switch(on)


def calibrate(layer: nn.Module, x: Tensor) -> None:
    for quantizer, tensor in ((layer.quantize_w, effective(layer)), (layer.quantize_x, x)):
        if hasattr(quantizer, "calibrate"):
            quantizer.calibrate(tensor)
