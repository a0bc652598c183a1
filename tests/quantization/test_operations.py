"""Bit-operations, counted by hand."""

import torch
from torch import nn

from runner.core.batch import Batch, Output
from runner.model.lenet import LeNet
from runner.model.mlp import Mlp
from runner.quantization import deploy
from runner.quantization.littlebit import LittleBit
from runner.quantization.lsq import LSQ
from runner.quantization.quantizer import Codes
from tests.quantization.test_post_training import a_batch


def test_lenets_bit_operations_by_hand():
    """Multiply-accumulates: 28 * 28 * 6 * 25 = 117,600, 10 * 10 * 16 * 150 = 240,000, 48,000, 10,080 and 840."""
    inner, ends = 240_000 + 48_000 + 10_080, 117_600 + 840
    x = torch.rand(3, 1, 28, 28)
    for settings, expected in (
        ({"bits": 4}, inner * 4 * 4 + ends * 8 * 8),
        ({"bits": 2, "inputs": 3}, inner * 2 * 3 + ends * 8 * 8),
        ({"bits": 4, "inputs": "float"}, (inner * 4 + ends * 8) * 32),
        ({"bits": 4, "ends": "float"}, inner * 4 * 4 + ends * 32 * 32),
        ({"bits": 1, "ends": "same"}, inner + ends),
    ):
        made = LSQ(**settings).prepare(LeNet((1, 28, 28), 10), Batch(x, x, x)).eval()
        found = deploy.bit_operations(made, x)
        assert found == {"bit_operations": expected, "bit_operations_full": 416_520 * 1024}


def test_multiply_accumulates_of_groups_strides_and_dimensions():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv1d(2, 4, 3, stride=2), nn.Conv2d(4, 6, (3, 2), groups=2, padding=1)
            self.c, self.d = nn.Conv3d(1, 2, 2), nn.Linear(3, 5)

        def forward(self, x):  # (B, 2, 9) -> (B, 4, 4) -> (B, 6, 4, 3), three more times the same layer
            y = self.b(self.a(x).view(-1, 4, 4, 1).expand(-1, -1, -1, 2))
            z = self.c(y.view(-1, 1, 6, 4, 3))  # (B, 2, 5, 3, 2)
            y = (self.d(y) + self.d(y)).sum((1, 2))
            return Output(y + z.sum(), y)

    found = deploy.uses(Net(), torch.randn(3, 2, 9))
    assert found == {"a": 4, "b": 4 * 3, "c": 5 * 3 * 2, "d": 2 * 6 * 4}
    # 4 * 24 of the first: 4 outputs of 4 channels with 2 * 3 weights; 12 * 72 of the second: 6 channels with 2 * 3 * 2
    macs = 4 * 24 + 12 * 72 + 30 * 16 + 48 * 15
    found = deploy.bit_operations(Net(), torch.randn(3, 2, 9))
    assert found == {"bit_operations": macs * 1024, "bit_operations_full": macs * 1024}


def test_channels_of_zeros_have_no_operations():
    model, batch = Mlp((6,), 3, [8]), a_batch(6)
    made = LSQ(bits=4, ends="same").prepare(model, batch).eval()
    made.body[1].weight.data[:3] = 0
    assert deploy.bit_operations(made, batch.x)["bit_operations"] == (5 * 6 + 3 * 8) * 16


def test_channels_of_fewer_bits_have_those_of_their_tensor():
    class Layer(nn.Linear):
        def codes(self):
            return Codes(torch.ones(4, 3, dtype=torch.uint8), torch.ones(4, 1), torch.zeros(4, 1), 5)

    found = deploy.bit_operations(nn.Sequential(Layer(3, 4)), torch.randn(2, 3))
    assert found == {"bit_operations": 12 * 5 * 32, "bit_operations_full": 12 * 1024}


def test_low_rank_factors_are_two_layers_of_one_bit():
    """16 x 16 in two pairs of rank 8: 2 * 8 * (16 + 16) = 512 multiply-accumulates where there were 256."""
    model = LittleBit().prepare(Mlp((6,), 3, [16, 16]), a_batch(6)).eval()
    ends = (6 * 16 + 16 * 3) * 1024
    found = deploy.bit_operations(model, torch.randn(2, 6))
    assert found == {"bit_operations": ends + 512 * 32, "bit_operations_full": ends + 256 * 1024}
