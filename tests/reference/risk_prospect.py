"""Prospect before every sample has been seen: all weights are equal. Later: tests/risk/test_spectral.py."""

SETTINGS = [{}, {"spectrum": "esrm", "parameter": 3.0, "nu": 0.2}]


def reference(losses, weight, spectrum="extremile", parameter=2.0, nu=1.0):
    return sum(w * loss for loss, w in zip(losses, weight, strict=True)) / len(losses)
