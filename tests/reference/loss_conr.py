"""ConR (Keramati et al., arXiv:2309.06651) on top of the absolute error, one anchor and one pair at a time."""

import numpy as np

SETTINGS = [{}, {"window": 2.0, "temperature": 0.5}, {"beta": 1.0, "window": 3.0, "e": 0.4}, {"beta": 0.0}]
TARGETS = ("real",)
COUPLED = True


def reference(logits, y, features, beta=4.0, window=1.0, temperature=0.07, e=0.01):
    z = np.asarray(logits)[:, 0]
    losses = []
    for i in range(len(y)):
        positives, negatives = [], []
        for j in range(len(y)):
            cosine = features[i] @ features[j] / np.linalg.norm(features[i]) / np.linalg.norm(features[j])
            similar = np.exp(cosine / temperature)
            if j != i and abs(y[i] - y[j]) <= window:
                positives.append(similar)
            elif j != i and abs(z[i] - z[j]) <= window:
                negatives.append(np.exp(e * abs(y[i] - y[j])) * similar)
        regulariser = 0.0
        if positives and negatives:
            total = sum(positives) + sum(negatives)
            regulariser = np.mean([-np.log(positive / total) for positive in positives])
        losses.append(abs(y[i] - z[i]) + beta * regulariser)
    return np.array(losses)
