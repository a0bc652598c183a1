"""FedNova (Wang et al., NeurIPS 2020, arXiv:2007.07481): normalised averaging.

    x - y_i = lr * sum_k a_ik * g_ik             what local steps do: a_i says how much of each gradient is in the end
    d_i     = (x - y_i) / |a_i|_1                so lr cancels; p_i = n_i / sum of n over the clients that took part
    x      <- x - tau_eff * sum_i p_i * d_i,     tau_eff = sum_i p_i * |a_i|_1

Read: JYWa/FedNova distoptim/FedNova.py and train_LocalSGD.py (the authors'), Xtra-Computing/NIID-Bench
experiments.py, flwr baselines/niid_bench. All three agree on the above for SGD with momentum rho, whose |a|_1 is the
sum over k of (1 - rho^k) / (1 - rho), k = 1 .. steps; weight decay is part of g. Momentum buffers start empty every
round; no client keeps state. Server momentum (`gmf`, 0) is a plain heavy ball on the averaged difference.
Where they differ: with a proximal term the authors' code takes tau_eff = sum_i p_i * steps_i, not the norms; and with
both momentum and a proximal term its recursion for |a|_1 adds two terms a step (2 - lr * mu after one step, where the
truth is 1), so here |a|_1 is found from the definition, by sending one gradient after another through the local steps.
The paper's text was not at hand. Not settled by any of them: a learning rate that changes within a round, and client
optimizers other than SGD. |a|_1 counts steps, not learning rates, and has no meaning for Adam.
"""

import numpy as np


def coefficients(steps, momentum=0.0, dampening=0.0, nesterov=False, prox=0.0):
    """a_i of SGD as an array (steps,); prox = lr * mu, its pull added to the gradient before the momentum."""
    a = []
    for k in range(steps):
        moved, velocity = 0.0, None  # moved = (x - y) / lr when only gradient k is one, the others zero
        for step in range(steps):
            g = float(step == k) - prox * moved
            velocity = g if velocity is None else momentum * velocity + (1 - dampening) * g
            moved += g + momentum * velocity if nesterov else velocity
        a.append(moved)
    return np.array(a)


def server(x, locals_, sizes, norms):
    """The next global weights from every client's weights, its number of samples and its |a_i|_1."""
    total = sum(sizes)
    effective = sum(n / total * norm for n, norm in zip(sizes, norms, strict=True))
    step = 0.0
    for y, n, norm in zip(locals_, sizes, norms, strict=True):
        step = step + n / total * (x - y) / norm
    return x - effective * step
