"""The network that knows the time, against a transcription of its definition."""

import math

import pytest
import torch

from runner.model.mlp_time import MlpTime


def by_hand(model: MlpTime, x: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One sample, (D,)."""
    e = [math.sin(1000 * t * 10 ** (-4 * k / 31)) for k in range(32)]
    e = torch.tensor([*e, *(math.cos(1000 * t * 10 ** (-4 * k / 31)) for k in range(32))], dtype=x.dtype)
    tensors = model.state_dict()

    def layer(name: str, v: torch.Tensor) -> torch.Tensor:
        return tensors[f"{name}.weight"] @ v + tensors[f"{name}.bias"]

    def silu(v: torch.Tensor) -> torch.Tensor:
        return v / (1 + (-v).exp())

    h = layer("enter", x) + layer("told.0", e)
    for k in range(len(model.inner)):
        h = h + layer(f"outer.{k}", silu(layer(f"inner.{k}", silu(h)) + layer(f"told.{k + 1}", e)))
    return layer("leave", silu(h)), h


@pytest.mark.parametrize("shape, width, depth", [((1, 3, 2), 8, 1), ((5,), 6, 3)])
def test_it_is_its_definition(shape, width, depth):
    model = MlpTime(shape, width, depth).double()
    assert not model(torch.randn(2, *shape, dtype=torch.float64)).logits.any()  # 0 at the start
    for layer in (model.leave, *model.outer):
        torch.nn.init.normal_(layer.weight), torch.nn.init.normal_(layer.bias)
    x, t = torch.randn(3, *shape, dtype=torch.float64), torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    out = model(x, t)
    for k in range(3):
        logits, features = by_hand(model, x[k].flatten(), t[k].item())
        torch.testing.assert_close(out.logits[k], logits), torch.testing.assert_close(out.features[k], features)
    torch.testing.assert_close(model(x).logits, model(x, torch.zeros(3, dtype=torch.float64)).logits)
    assert not torch.equal(model(x).logits, out.logits)
