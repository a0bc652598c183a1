"""The empirical risk with sample weights: (1/B) sum_i w_i l_i."""

SETTINGS = [{}]


def reference(losses, weight):
    total = 0.0
    for loss, w in zip(losses, weight, strict=True):
        total += w * loss
    return total / len(losses)
