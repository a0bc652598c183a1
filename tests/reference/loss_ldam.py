"""LDAM (Cao et al., arXiv:1906.07413), one sample at a time; soft targets: the expectation over the label. The logits
are s times the cosines."""

import numpy as np

SETTINGS = [{}, {"max_m": 0.0}, {"max_m": 0.2, "s": 5.0}]


def reference(logits, y, class_counts, max_m=0.5, s=30.0):
    margins = [1.0 / np.sqrt(np.sqrt(n)) for n in class_counts]
    margins = [max_m * margin / max(margins) for margin in margins]

    def hard(cosines, label):
        scaled = [s * (cosine - margins[c] * (c == label)) for c, cosine in enumerate(cosines)]
        return np.log(sum(np.exp(np.array(scaled) - max(scaled)))) + max(scaled) - scaled[label]

    losses = []
    for z, target in zip(np.asarray(logits), y, strict=True):
        if np.ndim(target):
            losses.append(sum(target[c] * hard(z / s, c) for c in range(len(z))))
        else:
            losses.append(hard(z / s, target))
    return np.array(losses)
