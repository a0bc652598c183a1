"""Evidential modelling of confusion and ignorance (Fan et al., arXiv:2309.07403), one sample at a time: the mass of
every subset of the classes by the combination of the plausibility functions (equation 5), then equations 9 to 13."""

from itertools import product

import numpy as np
from scipy.special import digamma, gammaln

SETTINGS = [{}, {"reg": 0.0, "kl": 0.0}, {"reg": 2.0, "kl": 1.0}, {"begin": 0}]


def masses(z):
    """{subset of the classes: mass}; each plausibility function says yes or no to its class."""
    found = {}
    for said in product((False, True), repeat=len(z)):
        mass = 1.0
        for yes, x in zip(said, z, strict=True):
            mass *= 1 / (1 + np.exp(-x if yes else x))  # the plausibility, or one minus it
        found[frozenset(np.flatnonzero(said).tolist())] = mass
    return found


def reference(logits, y, held, reg=1.0, kl=0.05, begin=5):
    losses = []
    for z, target, at in zip(np.asarray(logits), y, held, strict=True):
        classes = len(z)
        target = target if np.ndim(target) else np.eye(classes)[target]
        mass = masses(z)
        assert abs(sum(mass.values()) - 1) < 1e-12
        belief = [mass[frozenset([c])] for c in range(classes)]
        uncertainty = sum(m for subset, m in mass.items() if len(subset) != 1)  # confusion and ignorance
        alpha = [classes * b / (uncertainty + 1e-6) + 1 for b in belief]
        plausible = [sum(m for subset, m in mass.items() if c in subset) for c in range(classes)]
        ignorance = masses(at)[frozenset()]
        likelihood = sum(target[c] * (np.log(sum(alpha)) - np.log(alpha[c])) for c in range(classes))
        regular = sum(target[c] * (plausible[c] - (1 - ignorance)) ** 2 for c in range(classes))
        tilde = [target[c] + (1 - target[c]) * alpha[c] for c in range(classes)]
        tilde = [float(a) for a in tilde]
        divergence = gammaln(sum(tilde)) - gammaln(classes) - sum(gammaln(a) for a in tilde)
        divergence += sum((a - 1) * (digamma(a) - digamma(sum(tilde))) for a in tilde)
        loss = likelihood + reg * regular + kl * divergence
        if begin > 0:  # the batches are of the first epoch
            rest = [1 / (1 + np.exp(x)) for x in z]
            loss -= np.mean([t * np.log(p) + (1 - t) * np.log(r) for t, p, r in zip(target, plausible, rest)])
        losses.append(loss)
    return np.array(losses)
