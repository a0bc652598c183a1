"""Compose any published loss, optimizer, sharpness method, quantizer and federated algorithm into one training loop."""

__version__ = "0.1.0"
