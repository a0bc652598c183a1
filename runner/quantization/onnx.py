"""A run of 8 bits as ONNX: `python -m runner.quantization.onnx outputs/NAME/ID`

Writes `quantized.onnx` from `quantized.pt`, runs it with onnxruntime on validation and test data, and adds the measures
to the run's result.json as `onnx`, beside those of `deployed`; a difference by more than rounding explains is an error,
and nothing is written then. Weights are uint8 with a DequantizeLinear node behind them (not int8, whose products with
uint8 inputs onnxruntime adds up in 16 bits on processors without VNNI), inputs of layers pass through QuantizeLinear
and DequantizeLinear, biases and the rest are in fp32. The graph takes `x`, any number of samples, normalised as in
training, and gives `logits`; where a loss makes those from weights of its own, it has them.

The quantized layers must be of 8 bits, with a zero point that is an integer, and so must be their inputs where they are
quantized, as with `ptq`, `adaround`, `adaquant`, `lsq` and `gaqat` at `quantization.bits=8`; the first and the last
layer may be in full precision.

It is a command, not a part of every run: exporting takes longer than training a small network, imports a compiler, and
needs packages, the extra `onnx`, which need not be where training is.
"""

import argparse
import importlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.core import checkpoint
from runner.core.measure import measures
from runner.core.output import unbreakable
from runner.engine.reopened import opened
from runner.engine.trainer import Trainer
from runner.loss import Loss
from runner.quantization import deploy
from runner.quantization.fake import Float, QuantizedConv2d, QuantizedLinear, QuantizedSame, Same
from runner.quantization.quantizer import Codes, Quantizer
from runner.record.files import finished, write_atomic, write_json
from runner.transform.maps import baked

FILE = "quantized.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


# ---- layers as nodes


class Weights(nn.Module):
    """uint8 and how to read them, `scale` and `zero` being () or (C,): a DequantizeLinear node."""

    def __init__(self, codes: Codes):
        super().__init__()
        self.axis = {} if codes.scale.numel() == 1 else {"axis": 0}
        shape = codes.scale.flatten().shape if self.axis else ()
        self.register_buffer("values", codes.values)
        self.register_buffer("scale", codes.scale.detach().float().reshape(shape))
        self.register_buffer("zero", codes.zero.to(torch.uint8).expand_as(codes.scale).reshape(shape))

    def forward(self) -> Tensor:
        return _node("DequantizeLinear", (self.values, self.scale, self.zero), self.axis, torch.float32)


class Inputs(nn.Module):
    """Inputs on their grid, as uint8 in between: a QuantizeLinear and a DequantizeLinear node."""

    def __init__(self, quantizer: Quantizer):
        super().__init__()
        scale, low, _ = quantizer.present()
        self.register_buffer("scale", scale.detach().float().reshape(()))
        self.register_buffer("zero", (-low).to(torch.uint8).reshape(()))

    def forward(self, x: Tensor) -> Tensor:
        codes = _node("QuantizeLinear", (x, self.scale, self.zero), {}, torch.uint8)
        return _node("DequantizeLinear", (codes, self.scale, self.zero), {}, torch.float32)


def _node(name: str, inputs: tuple, attributes: dict, dtype: torch.dtype) -> Tensor:
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=inputs[0].shape)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.quantize_x(x), self.quantize_w(), self.bias)


class Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.quantize_x(x), self.quantize_w(), self.bias)


class SameConv2d(Conv2d, Same):
    pass


KINDS = {QuantizedLinear: Linear, QuantizedConv2d: Conv2d, QuantizedSame: SameConv2d}


class Network(nn.Module):
    """Inputs to logits, as evaluation sees them."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, x: Tensor) -> Tensor:
        return self.loss.head(self.model(x)).logits


def as_nodes(model: nn.Module) -> nn.Module:
    """The deployed model, changed in place: its quantized layers are what ONNX has for them, to be exported only.

    Raises ValueError where a layer is not of 8 bits with an integer zero point, or its inputs are not.
    """
    found = deploy.layers(model)
    for name, layer in found.items():
        codes = layer.codes() if type(layer) in KINDS else None
        if codes is None or codes.bits != 8 or bool((codes.zero != codes.zero.round()).any()):
            raise ValueError(f"{name} is not stored as integers of 8 bits with an integer zero point")
        if isinstance(layer.quantize_x, Float):
            continue
        if not isinstance(layer.quantize_x, Quantizer):
            raise ValueError(f"the inputs of {name} are not on a uniform grid ({type(layer.quantize_x).__name__})")
        _, low, high = layer.quantize_x.present()
        if int(high - low) != 255:
            raise ValueError(f"the inputs of {name} are not of 8 bits")
    for layer in found.values():
        layer.quantize_w = Weights(layer.codes())
        layer.quantize_x = nn.Identity() if isinstance(layer.quantize_x, Float) else Inputs(layer.quantize_x)
        layer.__class__ = KINDS[type(layer)]
    return model


@torch.no_grad()
def export(model: nn.Module, loss: Loss, x: Tensor) -> bytes:
    """The content of the file, from a deployed model, which is changed. x : two samples or more."""
    net = Network(as_nodes(model), loss).float().eval().requires_grad_(False)
    program = torch.onnx.export(
        net,
        (x.float(),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["x"],
        output_names=["logits"],
        verbose=False,
    )
    made = program.model_proto
    graph = made.graph
    for part in (made, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props"), part.ClearField("doc_string")  # stack traces, as large as a small network
    return made.SerializeToString()


class Session:
    """onnxruntime on the CPU."""

    def __init__(self, content: bytes):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def __call__(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(["logits"], {"x": x.float().numpy()})[0])


# ---- of a run


def rebuilt(folder: Path, state: dict) -> tuple[Trainer, nn.Module]:
    """A run on the CPU with its weights, and what it deployed, read from the content of `quantized.pt`."""
    trainer, (_, transform, calibration) = opened(folder)
    with trainer.hooks.weights(trainer):
        frame = transform.frame(trainer.model, calibration)
        return trainer, deploy.decode(state, baked(frame if deploy.layers(frame) else trainer.model))


def measured(run: Trainer, session: Session) -> dict[str, float]:
    """Of every split, as `deployed` in result.json."""
    found = {}
    for name, split in deploy.splits(run).items():
        parts = [(session(batch.x), batch.y) for batch in run.loader.evaluate(split, run.train.eval_batch_size)]
        logits, y = (torch.cat(part) for part in zip(*parts, strict=True))
        data = run.dataset
        measured = measures(logits, y, data.task, run.loss, data.tasks)
        found |= {f"{name}_{key}": value for key, value in measured.items()}
    return found


def write(folder: Path) -> dict[str, float]:
    """`quantized.onnx` of a finished run, and its measures, also in result.json.

    Raises
    ------
    ValueError
        The run is not finished, or not of 8 bits. ImportError: a package of the extra is missing.
    RuntimeError
        onnxruntime measures differently from what was deployed, by more than rounding explains.
    """
    result = finished(folder)
    if not (result or {}).get("quantization"):
        raise ValueError(f"{folder} holds no finished run with quantization")
    state = checkpoint.load(folder / deploy.FILE)
    if not isinstance(state.get("layers"), dict):
        raise ValueError(f"{folder / deploy.FILE} does not hold a deployed network")
    for name, entry in state["layers"].items():
        if (bits := entry.get("codes", {}).get("bits")) != 8:
            stored = f"has {bits} bits" if bits else "is stored as binary factors"
            raise ValueError(f"{folder}: ONNX is for 8 bits, and {name} {stored}")
    for package in PACKAGES:
        importlib.import_module(package)
    run, model = rebuilt(folder, state)
    x = next(iter(run.loader.evaluate(run.dataset.train.select(torch.arange(2)), 2))).x
    content = export(model, run.loss.eval(), x)
    found = measured(run, Session(content))
    quantization = result["quantization"]
    deploy.compare(run, quantization["deployed"], found, (f"with {deploy.FILE}", f"with {FILE} in onnxruntime"))
    write_atomic(folder / FILE, content)
    position = list(quantization).index("deployed") + 1
    items = [item for item in quantization.items() if item[0] != "onnx"]
    result["quantization"] = dict([*items[:position], ("onnx", found), *items[position:]])
    write_json(folder / "result.json", result)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runner.quantization.onnx", description="Write quantized.onnx of a finished run of 8 bits."
    )
    parser.add_argument("folder", type=Path, help="outputs/NAME/ID")
    parser.error = lambda message: parser.exit(2, f"{message}\n")
    folder = parser.parse_args(arguments).folder
    try:
        found = write(folder)
    except ImportError as error:
        parser.error(f"ONNX needs packages that are not here ({error}): pip install {' '.join(PACKAGES)}")
    except (ValueError, RuntimeError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    key = next(key for key in found if key.startswith("test_"))
    print(f"{folder / FILE}: {(folder / FILE).stat().st_size:,} bytes, {key} {found[key]:.4f}")


if __name__ == "__main__":
    with unbreakable():
        main()
