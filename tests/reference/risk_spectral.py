"""The penalised spectral risk (Mehta et al., arXiv:2310.13863) by its definition.

max over q in the permutahedron of s of  q.l - nu/2 n |q - 1/n|^2,  by Frank and Wolfe's method with exact pairwise
steps: every vertex is s in some order, and the best one for a direction d is s in the order of d.
"""

from math import exp

SETTINGS = [
    {},
    {"nu": 0.05},
    {"nu": 0.0},
    {"spectrum": "superquantile", "parameter": 0.4},
    {"spectrum": "superquantile", "parameter": 0.6, "nu": 0.0},
    {"spectrum": "esrm", "parameter": 3.0, "nu": 0.2},
    {"parameter": 1.0},
]


def spectrum_of(n, spectrum, r):
    total = {
        "extremile": lambda u: u**r,
        "superquantile": lambda u: max(u - r, 0.0) / (1 - r),
        "esrm": lambda u: (exp(r * u) - 1) / (exp(r) - 1),
    }[spectrum]
    return [total((i + 1) / n) - total(i / n) for i in range(n)]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def best_vertex(s, direction):
    order = sorted(range(len(s)), key=lambda i: direction[i])
    vertex = [0.0] * len(s)
    for weight, i in zip(s, order, strict=True):
        vertex[i] = weight
    return tuple(vertex)


def reference(losses, weight, spectrum="extremile", parameter=2.0, nu=1.0):
    losses = [w * loss for loss, w in zip(losses, weight, strict=True)]
    n, s = len(losses), spectrum_of(len(losses), spectrum, parameter)
    if nu == 0:
        return dot(best_vertex(s, losses), losses)
    parts = {best_vertex(s, losses): 1.0}
    for _ in range(20_000):
        q = [sum(share * v[i] for v, share in parts.items()) for i in range(n)]
        gradient = [losses[i] - nu * n * (q[i] - 1 / n) for i in range(n)]
        toward, away = best_vertex(s, gradient), min(parts, key=lambda v: dot(gradient, v))
        d = [a - b for a, b in zip(toward, away, strict=True)]  # moves weight from the worst vertex to the best
        if dot(gradient, d) < 1e-15:
            break
        step = min(parts[away], dot(gradient, d) / (nu * n * dot(d, d)))
        parts[toward] = parts.get(toward, 0.0) + step
        parts[away] -= step
        if parts[away] <= 0:
            del parts[away]
    return dot(q, losses) - nu / 2 * n * sum((x - 1 / n) ** 2 for x in q)
