"""SCAFFOLD (Karimireddy et al., ICML 2020, arXiv:1910.06378, algorithm 1, option II).

    y <- y - lr * (g(y) - c_i + c)                    K local steps from y = x
    c_i' = c_i - c + (x - y) / (K * lr)               for plain SGD the mean of the gradients g along the way
    x <- x + server_lr * mean over S of (y_i - x)     S: the clients that took part
    c <- c + 1 / N * sum over S of (c_i' - c_i)       N: all clients; an absent client keeps its c_i

All variates start at zero, so c is always the plain mean of all c_i, whatever the sizes; server_lr is 1. The paper's
text was not at hand; the lines above are those that the issues below and TL-System/plato's pull request 386 quote of
it.
Read: Xtra-Computing/NIID-Bench experiments.py at 61b901a (and its issues 8 and 12), flwr baselines/niid_bench at its
merge.
Both start the variates at a random network instead of zero (harmless when all take part every round), both weight
y_i - x by the number of samples, and Flower weights c_i' - c_i by it too: then c is no longer the mean of the c_i.

Momentum is not in algorithm 1. Both programs take the optimizer's step and then add - lr * (c - c_i) to the weights,
outside of the momentum, with the divisor K * lr ("step" here); c_i is then the mean velocity, up to 1 / (1 -
momentum) times a gradient. A correction added to the gradient goes through the momentum, so its divisor must be lr *
|a|_1 with FedNova's norm ("gradient"); K * lr there would correct 1 / (1 - momentum) times too much. Both places move
a client equally far in a round of constant gradients, and are the paper's without momentum.
"""

import numpy as np


def norm(steps, momentum):
    total, weight = 0.0, 0.0
    for _ in range(steps):
        weight = momentum * weight + 1
        total += weight
    return total


def local(x, gradient, steps, lr, c, ci, momentum=0.0, place="gradient"):
    """(the client's weights, its next variate)."""
    y, velocity = np.array(x, dtype=np.float64), 0.0
    for _ in range(steps):
        g = gradient(y) + (c - ci) if place == "gradient" else gradient(y)
        velocity = momentum * velocity + g
        y = y - lr * velocity
        if place == "step":
            y = y - lr * (c - ci)
    divisor = lr * (norm(steps, momentum) if place == "gradient" else steps)
    return y, ci - c + (x - y) / divisor


def server(x, c, variates, results, weights=None, server_lr=1.0):
    """(x, c, variates) after a round. `variates`: every client's; `results`: {client: (weights, next variate)};
    `weights`: {client: weight of its difference}, the paper's uniform ones when None."""
    weights = weights or dict.fromkeys(results, 1.0)
    total = sum(weights.values())
    dx, dc, after = 0.0, 0.0, list(variates)
    for i, (y, ci) in results.items():
        dx = dx + weights[i] / total * (y - x)
        dc = dc + (ci - variates[i]) / len(variates)
        after[i] = ci
    return x + server_lr * dx, c + dc, after
