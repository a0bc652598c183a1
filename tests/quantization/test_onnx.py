"""What is deployed at 8 bits as ONNX: its nodes, its size, and that onnxruntime computes what was deployed."""

import json
from collections import Counter

import pytest
import torch
from torch import nn

from runner.core import checkpoint
from runner.core.batch import Batch, Output
from runner.engine.result import summary
from runner.engine.run import run
from runner.loss.adaface import AdaFace
from runner.loss.ce import CrossEntropy
from runner.model.lenet import LeNet
from runner.model.mlp import Mlp
from runner.model.resnet import ResNet
from runner.quantization import deploy
from runner.quantization import onnx as exporting
from runner.quantization.dorefa import DoReFa
from runner.quantization.fake import Same
from runner.quantization.littlebit import LittleBit
from runner.quantization.lsq import LSQ
from runner.quantization.ptq import PTQ
from runner.record.identity import folder
from tests.quantization.test_quantization import shaken
from tests.tiny import SMALL, compose

SHORT = ["quantization.calibration=64", *SMALL]


@pytest.fixture
def onnx():
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    return pytest.importorskip("onnx", reason="the extra onnx is not installed")


def a_batch(*shape: int, size: int = 64) -> Batch:
    return Batch(torch.randn(size, *shape), torch.randint(0, 4, (size,)), torch.arange(size))


def deployed(transform, model: nn.Module, batch: Batch) -> nn.Module:
    """What comes back from a file, without one."""
    made = transform.convert(transform.prepare(model, batch), batch)
    return deploy.decode(deploy.encode(made)[0], made)


def exported(onnx, model: nn.Module, loss, batch: Batch) -> tuple:
    """The graph, its initialisers by name and the file's content.

    The graph as it stands, taken node by node, gives the same logits but for inputs at the edge between two levels, of
    which there are few. onnxruntime's own form of it, which rounds biases to integers too, gives the same classes.
    """
    with torch.no_grad():
        wanted = loss.head(model(batch.x)).logits
    content = exporting.export(model, loss, batch.x[:2])
    graph = onnx.load_model_from_string(content).graph
    onnx.checker.check_model(onnx.load_model_from_string(content), full_check=True)
    assert wanted.std(0).min() > 0.01 * wanted.std()  # they depend on the input
    plain = node_by_node(content)(batch.x)  # 64 samples through a graph that was made with two
    close = ((plain - wanted).abs() < 1e-4 * wanted.std()).all(1)
    assert close.float().mean() > 0.9
    made = exporting.Session(content)(batch.x)
    first, second = wanted.topk(2).values.T
    clear = first - second > 0.2 * wanted.std()
    assert clear.sum() > 16
    assert (made.argmax(1) == wanted.argmax(1))[clear].all()
    return graph, {tensor.name: tensor for tensor in graph.initializer}, content


def node_by_node(content: bytes) -> exporting.Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = exporting.Session(content)
    session.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session


def weights(graph, stored: dict) -> dict:
    """Of every DequantizeLinear node that reads constants: the tensor, its scale and its zero point."""
    nodes = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    return {node.input[0]: tuple(stored[name] for name in node.input) for node in nodes}


def test_lenet_with_grids_for_channels_and_zero_points(onnx):
    batch = a_batch(1, 28, 28)
    model = deployed(PTQ(channels=True, affine=True, range="minmax"), LeNet((1, 28, 28), 10), batch)
    codes = {name: layer.codes() for name, layer in deploy.layers(model).items()}
    size = 4 * sum(c.values.numel() for c in codes.values())
    graph, stored, content = exported(onnx, model, CrossEntropy(), batch)
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["QuantizeLinear"] == 5 and kinds["DequantizeLinear"] == 10
    assert kinds["Conv"] == 2 and kinds["Gemm"] + kinds["MatMul"] == 3
    found = weights(graph, stored)
    assert len(found) == 5
    for values, scale, zero in found.values():
        assert values.data_type == zero.data_type == onnx.TensorProto.UINT8
        assert scale.dims == zero.dims == values.dims[:1]
    for name, code in codes.items():  # bit for bit what quantized.pt holds
        values, scale, zero = map(onnx.numpy_helper.to_array, found[f"model.{name}.quantize_w.values"])
        assert (values == code.values.numpy()).all()
        assert (scale == code.scale.flatten().numpy()).all() and (zero == code.zero.flatten().numpy()).all()
        assert len(set(zero.tolist())) > 1
    floats = sum(t.dims[0] for t in stored.values() if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1)
    assert floats == 0  # no weight in full precision
    assert len(content) < size / 3
    assert str(exporting.__file__).encode() not in content


def test_a_resnet_whose_batchnorm_was_folded(onnx):
    batch = a_batch(3, 16, 16)
    net = shaken(ResNet((3, 16, 16), 4, depth=8)).float()
    graph, stored, _ = exported(onnx, deployed(PTQ(), net, batch), CrossEntropy(), batch)
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["BatchNormalization"] == 0 and kinds["Conv"] == 7 and kinds["QuantizeLinear"] == 8
    assert len(weights(graph, stored)) == 8


def test_logits_that_a_loss_makes_are_in_the_graph_and_inputs_may_be_in_full_precision(onnx):
    batch = a_batch(6)
    model = deployed(PTQ(inputs="float", channels=True, ends="same"), Mlp((6,), 4, [8]), batch)
    loss = AdaFace(classes=4, features=8)
    graph, stored, _ = exported(onnx, model, loss.eval(), batch)
    assert Counter(node.op_type for node in graph.node)["QuantizeLinear"] == 0
    assert len(weights(graph, stored)) == 1  # the model's own last layer has no part in it


class Uneven(nn.Module):
    """A convolution that pads one side only."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = Same(3, 4, 3, stride=2), nn.Linear(4 * 4 * 4, 4)

    def forward(self, x: torch.Tensor) -> Output:
        features = self.conv(x).relu().flatten(1)
        return Output(self.head(features), features)


def test_padding_as_tensorflow_has_it(onnx):
    batch = a_batch(3, 8, 8)
    graph, stored, _ = exported(onnx, deployed(PTQ(), Uneven(), batch), CrossEntropy(), batch)
    assert len(weights(graph, stored)) == 2


@pytest.mark.parametrize(
    "transform, message",
    [
        (PTQ(bits=4), "body.3 is not stored as integers of 8 bits"),
        (PTQ(inputs=4), "the inputs of body.3 are not of 8 bits"),
        (DoReFa(bits=8, ends="same"), "body.1 is not stored as integers of 8 bits with an integer zero point"),
        (LittleBit(ends="same"), "body.1 is not stored as integers of 8 bits"),
    ],
    ids=["4 bits", "4-bit inputs", "dorefa", "littlebit"],
)
def test_what_has_no_form_in_8_bits_is_refused(transform, message):
    batch = a_batch(1, 4, 4)
    with pytest.raises(ValueError, match=message):
        exporting.as_nodes(deployed(transform, Mlp((1, 4, 4), 4, [8, 8]), batch))


def test_learned_and_observed_steps_are_those_of_the_end(onnx):
    """After steps of training, of a scale below zero too, which counts by its size."""
    batch = a_batch(6)
    model = LSQ(bits=8).prepare(Mlp((6,), 4, [8]), batch)
    with torch.no_grad():
        for layer in deploy.layers(model).values():
            layer.quantize_w.scale.mul_(-1.3), layer.quantize_x.scale.mul_(1.7)
    model = deploy.decode(deploy.encode(model)[0], model)
    exported(onnx, model, CrossEntropy(), batch)


# ---- of a run


def test_a_run_gets_its_file_and_its_measures(onnx, tmp_path, capsys):
    config = compose(*SMALL, f"outputs_dir={tmp_path}", "quantization=lsq", "quantization.bits=8", "hook=ema")
    before = run(config, [], say=lambda *_: None)
    place = folder(config)
    assert "onnx" not in before["quantization"]
    exporting.main([str(place)])
    said = capsys.readouterr().out
    size = (place / "quantized.onnx").stat().st_size
    result = json.loads((place / "result.json").read_text())
    block = result["quantization"]
    assert said == f"{place}/quantized.onnx: {size:,} bytes, test_accuracy {block['onnx']['test_accuracy']:.4f}\n"
    assert list(block)[:4] == ["full", "fake", "deployed", "onnx"]
    assert block["onnx"].keys() == block["deployed"].keys()
    assert block["onnx"]["test_nll"] == pytest.approx(block["deployed"]["test_nll"], rel=1e-2)
    assert f"onnx {100 * block['onnx']['test_accuracy']:.2f} %" in summary(result)
    del block["onnx"]
    assert json.loads(json.dumps(result)) == json.loads(json.dumps(before | {"quantization": block}))


@pytest.mark.parametrize("option, learns", [("adaround", "adaround.AdaRound"), ("adaquant", "adaquant.AdaQuant")])
def test_rounding_is_read_and_not_learned_again(option, learns, onnx, tmp_path, monkeypatch):
    words = [*SMALL, f"quantization={option}", "quantization.bits=8", "quantization.steps=20"]
    config = compose(*words, f"outputs_dir={tmp_path}", "quantization.calibration=64")
    run(config, [], say=lambda *_: None)
    monkeypatch.setattr(f"runner.quantization.{learns}.learn", None)
    exporting.main([str(folder(config))])
    stored = onnx.load(folder(config) / "quantized.onnx").graph.initializer
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in stored}
    packed = checkpoint.load(folder(config) / "quantized.pt")
    for name, entry in packed["layers"].items():
        codes = deploy._get_codes(deploy.Content(packed["data"].numpy().tobytes()), entry)
        assert (arrays[f"model.{name}.quantize_w.values"] == codes.values.numpy()).all()


def test_a_file_that_computes_something_else_is_not_written(onnx, tmp_path, monkeypatch, capsys):
    config = compose(*SHORT, f"outputs_dir={tmp_path}", "quantization=ptq")
    run(config, [], say=lambda *_: None)
    whole = exporting.Session.__call__
    monkeypatch.setattr(exporting.Session, "__call__", lambda self, x: whole(self, x).roll(1, -1))
    before = (folder(config) / "result.json").read_text()
    with pytest.raises(SystemExit) as stop:
        exporting.main([str(folder(config))])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "what was deployed is not what was trained: " in said
    assert not (folder(config) / "quantized.onnx").exists()
    assert (folder(config) / "result.json").read_text() == before


@pytest.mark.parametrize(
    "words, message",
    [
        (["quantization=ptq", "quantization.bits=4", "quantization.ends=same"], "ONNX is for 8 bits, and body.1 has 4"),
        (["quantization=littlebit", "quantization.ends=same"], "and body.1 is stored as binary factors"),
        ([], "holds no finished run with quantization"),
    ],
    ids=["4 bits", "factors", "none"],
)
def test_other_runs_get_one_line_and_no_file(words, message, tmp_path, capsys):
    config = compose(*SMALL, f"outputs_dir={tmp_path}", "train.epochs=1", *words)
    run(config, [], say=lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        exporting.main([str(folder(config))])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said
    assert not (folder(config) / "quantized.onnx").exists()


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    config = compose(*SHORT, f"outputs_dir={tmp_path}", "train.epochs=1", "quantization=ptq")
    run(config, [], say=lambda *_: None)

    def missing(name: str):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(exporting.importlib, "import_module", missing)
    with pytest.raises(SystemExit):
        exporting.main([str(folder(config))])
    said = capsys.readouterr().err
    assert (
        said
        == "ONNX needs packages that are not here (No module named 'onnx'): pip install onnx onnxscript onnxruntime\n"
    )
    assert not (folder(config) / "quantized.onnx").exists()
