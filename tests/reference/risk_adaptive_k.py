"""Adaptive-k at its first batch: m = (1 - b1) L and v = (1 - b2) L^2, so the threshold is (1 - b1) / sqrt(1 - b2)."""

from math import sqrt

SETTINGS = [{}, {"warmup": 0.0}, {"warmup": 0.0, "beta2": 0.99}, {"warmup": 0, "beta1": 0.5, "beta2": 0.8}]


def reference(losses, weight, warmup=0.375, beta1=0.9, beta2=0.999):
    threshold = (1 - beta1) / sqrt(1 - beta2) if warmup == 0 else float("inf")
    kept = [w * loss for loss, w in zip(losses, weight, strict=True) if loss <= threshold]
    return sum(kept) / len(kept)
