"""EQ-Net's penalty on the distribution of weights and its distillation, one number at a time (arXiv:2308.07650, as in
the authors' code)."""

from math import exp, log, sqrt


def moments(w):
    """Skewness and kurtosis, with the unbiased standard deviation."""
    n = len(w)
    mean = sum(w) / n
    std = sqrt(sum((v - mean) ** 2 for v in w) / (n - 1))
    z = [(v - mean) / std for v in w]
    return sum(v**3 for v in z) / n, sum(v**4 for v in z) / n


def penalty(layers, of_kurtosis, of_skewness):
    """Mean over layers; each is a list of its weights."""
    total = 0.0
    for w in layers:
        skewness, kurtosis = moments(w)
        total += of_kurtosis * (kurtosis - 1.8) ** 2 + of_skewness * (skewness - 0.0) ** 2
    return total / len(layers)


def softmax(z):
    top = max(z)
    shares = [exp(v - top) for v in z]
    return [v / sum(shares) for v in shares]


def divergence(guide, logits):
    """KL(p || q) = sum p log(p / q)."""
    return sum(p * log(p / q) for p, q in zip(softmax(guide), softmax(logits), strict=True))


def mixture(logits, guide, label, alpha):
    """(1 - alpha) * cross-entropy + alpha * KL, of one sample."""
    return (1 - alpha) * -log(softmax(logits)[label]) + alpha * divergence(guide, logits)
