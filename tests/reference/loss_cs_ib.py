"""CS-IB (Yu et al., arXiv:2404.17951), in bits, one pair of samples at a time.

The divergence is D(p(y|x); q(z|x)) = -2 log int p q + log int p^2 + log int q^2, with the conditional densities
estimated by kernels, p(y|x) = sum_i k(x, x_i) k(y, y_i) / sum_i k(x, x_i): at x = x_j the product of two of them has
(sum_i k(x_j, x_i))^2 below (Proposition 1 of the authors' slides, SJYuCNEL/Cauchy-Schwarz-Information-Bottleneck,
CS_IB.pdf). The information term is the quadratic mutual information of their code with explicit matrices.
"""

import numpy as np

SETTINGS = [{}, {"beta": 0.0}, {"sigma": 2.5}, {"beta": 2.0, "sigma": 4.0}]
TARGETS = ("real",)
COUPLED = True


def kernel(a, b, sigma):
    return np.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * sigma**2))


def gram(a, sigma):
    return np.array([[kernel(p, q, sigma) for q in a] for p in a])


def information(a, b):
    n = len(a)
    joint, apart = np.trace(a @ b.T) / n**2, a.sum() * b.sum() / n**4
    cross = (np.ones((1, n)) @ a.T @ b @ np.ones((n, 1))).item() / n**3
    return -2 * np.log2(cross) + np.log2(joint) + np.log2(apart)


def overlap(x, first, second, sigma):
    """sum_j of (sum_i k(x_j, x_i) k(first_j, second_i)) / (sum_i k(x_j, x_i))^2."""
    total = 0.0
    for j in range(len(x)):
        near = [kernel(x[j], x[i], sigma) for i in range(len(x))]
        both = sum(near[i] * kernel(first[j], second[i], sigma) for i in range(len(x)))
        total += both / sum(near) ** 2
    return total


def reference(logits, y, features, x, beta=0.01, sigma=1.0):
    z, y = np.reshape(logits, (-1, 1)), np.reshape(y, (-1, 1))
    loss = -2 * np.log2(overlap(x, z, y, sigma)) + np.log2(overlap(x, y, y, sigma)) + np.log2(overlap(x, z, z, sigma))
    k, f = gram(x, sigma), gram(features, sigma)
    loss += beta * information(k, f) / np.sqrt(information(k, k) * information(f, f))
    return np.full(len(y), loss)
