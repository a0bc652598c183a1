"""AdaPT (Kummer et al., arXiv:2107.13490) as its code has it but for what the option names, a number at a time."""

import math


def fixed(w, word, fraction, up):
    q = math.floor(w * 2**fraction + up)
    return min(max(q, -(2 ** (word - 1))), 2 ** (word - 1) - 1) / 2**fraction


def histogram(values, bins, low, high):
    """Shares of equal bins; the last one has its upper end; values outside do not count."""
    counts = [0] * bins
    for v in values:
        if low <= v <= high:
            counts[min(int((v - low) / (high - low) * bins), bins - 1)] += 1
    total = sum(counts)
    return [c / total for c in counts] if total else None


def divergence(weights, word, fraction, bins):
    low, high = min(weights), max(weights)
    p = histogram(weights, bins, low, high)
    q = histogram([fixed(w, word, fraction, 0.5) for w in weights], bins, low, high)
    if q is None or any(b == 0 for a, b in zip(p, q, strict=True) if a):
        return math.inf
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def lowered(weights, word, fraction, bins):
    """By trying every format from the shortest on."""
    for shorter in range(min(4, fraction), fraction + 1):
        if shorter == fraction or divergence(weights, word, shorter, bins) == 0:
            break
    for word_ in range(min(shorter + 1, word), word + 1):
        if word_ == word or divergence(weights, word_, shorter, bins) == 0:
            return word_, shorter


class Layer:
    """The history of one layer: what its format is after every gradient."""

    def __init__(self, word=8, fraction=4, lookback=(10, 100), resolution=(1, 100), momentum=0.33, buffer=8):
        self.word, self.fraction, self.lookbacks, self.resolutions = word, fraction, lookback, resolution
        self.momentum, self.buffer = momentum, buffer
        self.lookback, self.resolution, self.gradients = lookback[0], resolution[0], []

    def see(self, weights, gradient):
        norm = math.sqrt(sum(g * g for g in gradient))
        self.gradients.append([g / norm for g in gradient])
        length = math.sqrt(sum(sum(column) ** 2 for column in zip(*self.gradients, strict=True)))
        diversity = len(self.gradients) / length
        least, most = self.lookbacks
        new = math.ceil(min(max(most / diversity, least), most))
        self.lookback = math.ceil(new * self.momentum + self.lookback * (1 - self.momentum) - 1e-9)
        if self.lookback == most:
            self.resolution = min(self.resolution + 1, self.resolutions[1])
        if self.lookback == least:
            self.resolution = max(self.resolution - 1, self.resolutions[0])
        if len(self.gradients) >= self.lookback:
            word, fraction = lowered(weights, self.word, self.fraction, self.resolution)
            step, excess = 1, math.log(diversity) - 1
            if excess > 0:
                one = max(math.ceil(1 / excess**2), 1)
                two = max(min(math.ceil(32 * excess**2), 32) - fraction, 0)
                step = min(one, two)
            fraction = min(fraction + step, 32)
            word = min(max(word, fraction) + 1, 32)
            fraction = min(fraction, 32 - self.buffer)
            self.word, self.fraction = max(min(fraction + self.buffer, 32), word), fraction
            self.gradients = []
