"""Average top-k loss by its variational form (Fan et al., arXiv:1705.08826, lemma 1):

the mean of the k largest of l is  min over t of  t + (1/k) sum_i max(l_i - t, 0),  attained at one of the l_i.
"""

SETTINGS = [{}, {"fraction": 1.0}, {"fraction": 0.3}, {"fraction": 0.01}]


def reference(losses, weight, fraction=0.5):
    losses = [w * loss for loss, w in zip(losses, weight, strict=True)]
    k = max(1, round(fraction * len(losses)))
    return min(t + sum(max(loss - t, 0.0) for loss in losses) / k for t in losses)
