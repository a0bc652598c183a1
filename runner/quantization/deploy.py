"""What is deployed: weights as packed integers in one file, read back, measured and compared with what was trained."""

import copy
import logging
import math

import numpy as np
import torch
from torch import Tensor, nn

from runner.core import checkpoint, distributed
from runner.core.batch import Batch
from runner.core.work import uses
from runner.quantization import Transform
from runner.quantization.fake import layers
from runner.quantization.littlebit import Parts
from runner.quantization.quantizer import FULL, Codes, steps
from runner.transform.maps import baked

FILE = "quantized.pt"
PICTURE = "quantization.png"
# How far a measure may change by rounding alone: arithmetic in another order can move an input across the edge between
# two levels, and a sample across the border between two classes
SHARE, SAMPLES = 0.002, 2
PART = 256  # calibration samples that pass through the model at once


# ---- stored weights as modules


class Stored(nn.Module):
    """Quantized weights that stay: in the place of a quantizer, it gives levels and step by itself."""

    def __init__(self, codes: Codes):
        super().__init__()
        self.bits = codes.bits
        self.register_buffer("values", codes.values)
        self.register_buffer("scale", codes.scale)
        self.register_buffer("zero", codes.zero)

    def forward(self, w: Tensor | None) -> tuple[Tensor, Tensor]:
        unit = 2.0**-self.bits  # as in runner.quantization.quantizer: the sums are the same bit for bit
        return steps(self.values, self.zero, self.scale.dtype) * unit, self.scale / unit

    def codes(self, w: Tensor | None = None) -> Codes:
        return Codes(self.values, self.scale, self.zero, self.bits)


class StoredFactors(nn.Module):
    """The same for a pair of binary factors: see `runner.quantization.littlebit.Factors`."""

    def __init__(self, part: dict[str, Tensor]):
        super().__init__()
        for name, value in part.items():
            self.register_buffer(name, value)

    def forward(self) -> tuple[Tensor, Tensor]:
        u, v = (2.0 * bits.to(self.rows.dtype) - 1 for bits in (self.U, self.V))
        return v * self.columns * self.ranks[:, None], u * self.rows[:, None]


# ---- the file


def pack(values: Tensor, bits: int) -> bytes:
    """Integers in [0, 2^bits), one after another without gaps, the lowest bit first."""
    flat = values.flatten().cpu().numpy().astype(np.int64)
    return np.packbits(flat[:, None] >> np.arange(bits) & 1, bitorder="little").tobytes()


def unpack(content: bytes, bits: int, count: int) -> Tensor:
    """What `pack` has packed: (count,), uint8, or int64 where there are more than 8 bits."""
    ones = np.unpackbits(np.frombuffer(content, np.uint8), count=count * bits, bitorder="little")
    values = (ones.reshape(count, bits).astype(np.int64) << np.arange(bits)).sum(1)
    return torch.from_numpy(values).to(torch.uint8 if bits <= 8 else torch.int64)


class Content:
    """The file: bytes in a row, and what lies where. One tensor, as each has hundreds of bytes of overhead."""

    def __init__(self, data: bytes = b""):
        self.data = bytearray(data)

    def put(self, part: bytes) -> list[int]:
        self.data += part
        return [len(self.data) - len(part), len(part)]

    def get(self, place: list[int]) -> bytes:
        return bytes(self.data[place[0] : place[0] + place[1]])

    def put_integers(self, values: Tensor, bits: int) -> dict:
        return {"bits": bits, "shape": list(values.shape), "at": self.put(pack(values, bits))}

    def get_integers(self, entry: dict) -> Tensor:
        return unpack(self.get(entry["at"]), entry["bits"], math.prod(entry["shape"])).view(entry["shape"])

    def put_tensor(self, value: Tensor) -> dict:
        value = value.detach().cpu().contiguous()
        kind = str(value.dtype).removeprefix("torch.")
        raw = value.flatten().view(torch.uint8).numpy().tobytes()
        return {"dtype": kind, "shape": list(value.shape), "at": self.put(raw)}

    def get_tensor(self, entry: dict) -> Tensor:
        data, kind = bytearray(self.get(entry["at"])), getattr(torch, entry["dtype"])
        return (torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)).view(entry["shape"])


def encode(model: nn.Module) -> tuple[dict, dict[str, float]]:
    """The file's content, and the bits that are stored for each weight of every quantized layer, scales included.

    Output channels of zeros are left out, but for a bit each. What is not a quantized weight is stored as it is.
    """
    content, entries, bits = Content(), {}, {}
    rest = dict(model.state_dict())
    for name, layer in layers(model).items():
        before, codes = len(content.data), layer.codes()
        entries[name] = _put_parts(content, codes) if isinstance(codes, Parts) else _put_codes(content, codes)
        bits[name] = 8 * (len(content.data) - before) / codes.decode().numel()
        own = [f"{name}.{part}" for part in ("weight", "quantize_w.", "factors.")]
        rest = {key: value for key, value in rest.items() if key != own[0] and not key.startswith((own[1], own[2]))}
    others = {key: content.put_tensor(value) for key, value in rest.items()}
    data = torch.frombuffer(content.data, dtype=torch.uint8)
    return {"layers": entries, "rest": others, "data": data}, bits


def _put_codes(content: Content, codes: Codes) -> dict:
    alive, zero = codes.decode().flatten(1).any(1), codes.zero
    if bool((zero == zero.flatten()[0]).all()):
        zero = zero.flatten()[0]
    values = codes.values if bool(alive.all()) else codes.values[alive]
    return {
        "codes": content.put_integers(values, codes.bits),
        "alive": None if bool(alive.all()) else content.put_integers(alive, 1),
        "scale": content.put_tensor(codes.scale),
        "zero": content.put_tensor(zero),
    }


def _get_codes(content: Content, entry: dict) -> Codes:
    values, bits = content.get_integers(entry["codes"]), entry["codes"]["bits"]
    scale, zero = content.get_tensor(entry["scale"]), content.get_tensor(entry["zero"])
    if entry["alive"]:
        alive = content.get_integers(entry["alive"]).bool()
        whole = zero.to(values.dtype).expand(len(alive), *[1] * (values.dim() - 1))
        values = whole.expand(len(alive), *values.shape[1:]).clone().index_copy_(0, alive.nonzero().flatten(), values)
    return Codes(values, scale, zero, bits)


def _put_parts(content: Content, codes: Parts) -> dict:
    return {
        "parts": [
            {
                key: content.put_integers(value, 1) if key in ("U", "V") else content.put_tensor(value)
                for key, value in part.items()
            }
            for part in codes.parts
        ]
    }


def _get_parts(content: Content, entry: dict) -> list[dict[str, Tensor]]:
    return [
        {
            key: content.get_integers(value) if key in ("U", "V") else content.get_tensor(value)
            for key, value in part.items()
        }
        for part in entry["parts"]
    ]


def decode(state: dict, model: nn.Module) -> nn.Module:
    """A copy of the model with all of its numbers from the file and integers for weights, in evaluation mode.

    Raises
    ------
    ValueError
        The file was written for another model.
    """
    content, model = Content(state["data"].numpy().tobytes()), copy.deepcopy(model).eval()
    found = layers(model)
    if found.keys() != state["layers"].keys():
        raise ValueError(f"{FILE} is of another model: it has the quantized layers {', '.join(state['layers'])}")
    for name, entry in state["layers"].items():
        layer = found[name]
        device = next((value.device for value in layer.state_dict().values()), torch.device("cpu"))
        layer.weight = None
        if "parts" in entry:
            layer.factors = nn.ModuleList(StoredFactors(part) for part in _get_parts(content, entry)).to(device)
        else:
            layer.quantize_w = Stored(_get_codes(content, entry)).to(device)
    rest = {key: content.get_tensor(value) for key, value in state["rest"].items()}
    wrong = model.load_state_dict(rest, strict=False)
    stored = tuple(f"{name}.{part}." for name in found for part in ("quantize_w", "factors"))
    missing = [key for key in wrong.missing_keys if not key.startswith(stored)]
    if missing or wrong.unexpected_keys:
        raise ValueError(f"{FILE} is of another model: {', '.join([*missing, *wrong.unexpected_keys])}")
    return model


# ---- bit-operations


def bit_operations(model: nn.Module, x: Tensor) -> dict[str, int]:
    """The sum over all Linear and Conv layers of multiply-accumulates for one sample x bits of weights x bits of
    inputs, 32 of what is in full precision; and the same of the network without quantization.

    Bits of weights are those that are stored: channels of zeros are left out, and channels that share a tensor have
    the bits of the widest. Factors of low rank count as the two layers that they are, of one bit each, with the inputs
    and what lies between them in full precision. Additions of biases, and scales, are not counted.
    """
    quantized, now, full = layers(model), 0, 0
    for name, times in uses(model, x).items():
        layer = model.get_submodule(name)
        inputs = layer.quantize_x.bits if hasattr(layer, "quantize_x") else FULL
        codes = layer.codes() if name in quantized else None
        w = (layer.weight if codes is None else codes.decode()).flatten(1)
        if codes is None:
            stored = FULL * w.numel()
        elif isinstance(codes, Parts):
            stored = sum(part["U"].numel() + part["V"].numel() for part in codes.parts)
        else:
            stored = codes.bits * int(w.any(1).sum()) * w.shape[1]
        now, full = now + times * stored * inputs, full + times * w.numel() * FULL**2
    return {"bit_operations": now, "bit_operations_full": full}


# ---- what is reported


def report(run, transform: Transform, batch: Batch) -> dict | None:
    """Measure the trained, the fake-quantized and the deployed model, and write `quantized.pt` and `quantization.png`.

    run : the `runner.engine.trainer.Trainer` after its last step, or one with the same predict, folder, dataset and
        hooks.
    batch : calibration samples.

    Returns what result.json holds, or None where nothing is quantized or the weights are not finite:

        full, fake, deployed   measures of every split in full precision, fake-quantized, and of the file read back
        bytes, bytes_full      of the file; and of the same tensors with weights of 32 bits
        bit_operations, bit_operations_full   of one sample: see `bit_operations`
        bits_per_weight        stored for a weight of a quantized layer, its share of scales and zero points included
        layers                 name, weights, bits of the same kind, and error: the squared difference between the
                               layer's outputs here and in full precision over the squared outputs there, on the
                               calibration samples
        widths                 only where the weights serve several bit widths: the measures at each of them

    For options that quantize in training `full` is the same weights without quantizers (for BiPer the waves that it
    makes of them), which training never used; it is null where there are none, as with LittleBit, which keeps factors.

    Raises
    ------
    RuntimeError
        What was deployed measures differently from what was trained, by more than rounding explains.
    """
    if not all(bool(torch.isfinite(value).all()) for value in run.model.parameters()):
        return None
    with run.hooks.weights(run):
        model = stored(run.model, transform.convert(run.model, batch))
        if not layers(model):
            return None
        full = transform.full(run.model, batch)
        state, bits = encode(model)
        path = run.folder / FILE
        if distributed.rank == 0:
            checkpoint.save(state, path)
        read, size = distributed.from_first((checkpoint.load(path), path.stat().st_size) if path.exists() else None)
        deployed = decode(read, model)
        training = run.model.training
        found = {name: _measures(run, net) for name, net in (("full", full), ("fake", model), ("deployed", deployed))}
        widths = {str(bits): _measures(run, net) for bits, net in transform.widths(run.model, batch)}
        errors = {} if full is None else _errors(full, deployed, batch.x)
        operations = bit_operations(model, batch.x)
        run.model.train(training)
    compare(run, found["fake"], found["deployed"], ("fake-quantized", f"with the integers of {FILE}"))
    weights = {name: layer.codes().decode().numel() for name, layer in layers(model).items()}
    others = sum(entry["at"][1] for entry in state["rest"].values())
    table = [
        {"name": name, "weights": count, "bits": bits[name], "error": errors.get(name)}
        for name, count in weights.items()
    ]
    if distributed.rank == 0:
        try:
            from runner.record.layers import draw

            draw(table, run.folder / PICTURE)
        except Exception as error:  # as with curves.png
            logging.getLogger(__name__).warning("%s was not drawn: %s: %s", PICTURE, type(error).__name__, error)
    return {
        **found,
        "bytes": size,
        "bytes_full": others + 4 * sum(weights.values()),
        **operations,
        "bits_per_weight": sum(bits[name] * count for name, count in weights.items()) / sum(weights.values()),
        "layers": table,
        **({"widths": widths} if widths else {}),
    }


def stored(model: nn.Module, converted: nn.Module) -> nn.Module:
    """The trained network, or what it was converted to: the one with more layers that say how they are stored."""
    return baked(converted if len(layers(converted)) >= len(layers(model)) else model)


def splits(run) -> dict:
    return {name: split for name in ("val", "test") if (split := getattr(run.dataset, name)) is not None}


def _measures(run, model: nn.Module | None) -> dict | None:
    if model is None:
        return None
    model.eval()
    return {
        f"{name}_{key}": value
        for name, split in splits(run).items()
        for key, value in run.scored(split, model.eval()).items()
    }


def compare(run, one: dict, other: dict, names: tuple[str, str]) -> None:
    """Raises RuntimeError where their measures, if finite, differ by more than rounding explains."""
    for name, split in splits(run).items():
        key = next(key for key in one if key.startswith(f"{name}_"))  # accuracy where there is one
        trained, stored = one[key], other[key]
        if not math.isfinite(trained):  # a network that diverged is no fault of the file
            continue
        if not abs(trained - stored) <= max(SAMPLES / len(split), SHARE * max(1, abs(trained))):
            raise RuntimeError(
                f"what was deployed is not what was trained: {key} {trained:.4f} {names[0]}, {stored:.4f} {names[1]}"
            )


@torch.no_grad()
def seen(model: nn.Module, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What goes into a layer and what comes out of it, over all samples of x and all of its calls."""
    inputs, outputs = [], []

    def keep(_, given, made) -> None:  # copies, as an activation may overwrite them
        inputs.append(given[0].clone()), outputs.append(made.clone())

    handle = layer.register_forward_hook(keep)
    try:
        for part in x.split(PART):
            model(part)
    finally:
        handle.remove()
    return torch.cat(inputs), torch.cat(outputs)


@torch.no_grad()
def _errors(full: nn.Module, model: nn.Module, x: Tensor) -> dict[str, float]:
    """See `report`."""
    wanted: dict[str, Tensor] = {}
    sums = {name: [0.0, 0.0] for name in layers(model)}

    def keep(name: str, made: Tensor) -> None:
        wanted[name] = made.clone()

    def compare(name: str, made: Tensor) -> None:
        sums[name][0] += (made - wanted[name]).double().square().sum().item()
        sums[name][1] += wanted[name].double().square().sum().item()

    handles = [
        net.get_submodule(name).register_forward_hook(lambda _, __, made, name=name, see=see: see(name, made))
        for net, see in ((full, keep), (model, compare))
        for name in sums
    ]
    try:
        for part in x.split(PART):
            full(part), model(part)
    finally:
        for handle in handles:
            handle.remove()
    return {name: error / max(size, 1e-30) for name, (error, size) in sums.items()}
