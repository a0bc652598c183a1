"""CVaR's variational form at alpha = 0 (Rockafellar & Uryasev 2000): all losses are at least 0, so none is cut off."""

SETTINGS = [{}, {"beta": 0.0}, {"beta": 0.5}]


def reference(losses, weight, beta=0.9):
    return sum(w * loss for loss, w in zip(losses, weight, strict=True)) / len(losses) / (1 - beta)
