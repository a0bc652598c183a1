"""The references of FedLD, FedCE, WAFL and FedLEx against values by hand and identities."""

from itertools import pairwise

import numpy as np
import pytest

from tests.federated.references import average, close, draw, load

fedld, fedce, wafl, fedlex = load("fedld"), load("fedce"), load("wafl"), load("fedlex")


# FedLD
def test_fedld_loss_by_hand():
    # equal logits: cross-entropy log 2 each, |p|^2 = 1/2 each, so 1 + 2 * 1/2 = 2
    close(fedld.loss([[0.0, 0.0], [5.0, 5.0]], [0, 1], lam=0.1), np.log(2) + 0.1 * np.log(2))
    # certain of the true class: cross-entropy 0, |p|^2 = 1
    close(fedld.loss([[100.0, 0.0]] * 3, [0] * 3, lam=0.1), 0.1 * np.log(4))
    padded = fedld.loss([[0.0, 0.0], [5.0, 5.0], [9.0, 0.0]], [0, 1, 1], lam=0.1, real=[1, 1, 0])
    close(padded, 1.1 * np.log(2))


def test_fedld_step_by_hand():
    # g = (2, 1), (1, 2): G G^T / 2 = [[2.5, 2], [2, 2.5]], s = 4.5, 0.5, unit w = (1, 1), (1, -1) over root 2;
    # |g| = root 5, so 0.9 and 0.1 of it: root 2.5 * (0.9 + 0.1, 0.9 - 0.1) and its mirror; mean root 2.5 * (0.9, 0.9)
    g = np.array([[2.0, 1.0], [1.0, 2.0]])
    close(fedld.project(g, 1.0), [0.9 * np.sqrt(2.5)] * 2)
    close(fedld.project(g, 0.8), [0.9 * np.sqrt(2.5)] * 2)  # k = 1: what the second one adds cancels
    # orthogonal (3, 0), (0, 4): s = 8, 4.5 over 12.5: 0.64 of (0, 4) and 0.36 of (3, 0), halved
    g = np.array([[3.0, 0.0], [0.0, 4.0]])
    close(fedld.project(g, 1.0), [0.54, 1.28])
    close(fedld.project(g, 0.5), [0.0, 1.28])


@pytest.mark.parametrize(("m", "k_proportion"), [(5, 0.8), (10, 0.8), (4, 1.0), (3, 0.3)])
def test_fedld_step_is_a_weighted_sum_of_the_differences(m, k_proportion):
    g = draw(m, 30, seed=m)
    values, vectors = np.linalg.eigh(g @ g.T / m)
    weights, lengths = np.zeros(m), np.linalg.norm(g, axis=1)
    for s, e in list(zip(values, vectors.T, strict=True))[::-1][: max(1, int(m * k_proportion))]:
        weights += s / values.sum() / np.sqrt(m * s) * (lengths * np.sign(e)).mean() * e
    close(fedld.project(g, k_proportion), weights @ g)


def test_fedld_keeps_the_length_that_the_eigenvalues_leave():
    # for one client's difference: |g| * sqrt(sum of (s / sum of s)^2) over the kept directions, which are orthonormal
    g = draw(6, 40)
    s = np.linalg.eigvalsh(g @ g.T / 6)[::-1]
    share = np.sqrt(((s / s.sum())[:4] ** 2).sum())
    single = [np.linalg.norm(fedld.project(np.vstack([g[i]] * 6), 0.8)) for i in range(6)]
    close(single, np.linalg.norm(g, axis=1))  # one direction: all of it
    assert np.linalg.norm(fedld.project(g, 0.7)) <= share * np.linalg.norm(g, axis=1).mean() + 1e-12


def test_fedld_one_client_or_equal_clients_are_fedavg():
    g = draw(1, 7)
    close(fedld.project(g, 0.8), g[0])
    close(fedld.project(np.repeat(g, 5, axis=0), 0.8), g[0])


def test_fedld_rounds():
    def clients(seed):
        return [
            [draw(2, 3, seed=seed + i), np.array([float(i)]), np.zeros(4), draw(3, seed=seed + 9 * i)] for i in range(5)
        ]

    first, second = clients(0), clients(100)
    second[0][2][:] = 1.0  # a tensor that has not moved yet
    steps = fedld.run([first, second, second])
    for t in range(4):
        close(steps[0][t], np.mean([client[t] for client in first], axis=0))
    assert steps[1][0].shape == (2, 3)
    close(steps[1][0].ravel(), fedld.project(np.stack([client[0].ravel() for client in second]), 0.8))
    close(steps[1][1], [2.0])  # one element: the mean in every round
    close(steps[1][2], [0.2] * 4)  # first movement: the mean
    close(steps[2][2], [1.0 / 5] * 4)  # one client's (1, 1, 1, 1) alone: one direction, |g| of it, over five clients
    close(steps[2][3], steps[1][3])  # the history changes nothing else


# FedCE
def test_fedce_by_hand():
    # round 0, c = 1/3: gbar = (2/3, 1/3); without g1: (1/3, 1/3), cosine 0.70711, likewise g2; without g3: (2/3, 0), 0.
    # a = 0.29289, 0.29289, 1 over 1.58579 = 0.18470, 0.18470, 0.63060; b = 1/3; half of the sums: 0.25902, 0.48197.
    # round 1, c as found: without g1 (0.25902, 0.48197), cosine 0.25902 / 0.54715 = 0.47339; means 0.59025 and 0;
    # a = 0.40975, 0.40975, 1 over 1.81950 = 0.22520, 0.22520, 0.54960;
    # b = 1 - 0.4, 1 - 0.3, 1 - 0.45 = 0.6, 0.7, 0.55 over 1.85 = 0.32432, 0.37838, 0.29730.
    g = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    rounds = [dict(enumerate(zip(g, scores, strict=True))) for scores in ([None] * 3, [0.8, 0.6, 0.9])]
    first, second = fedce.run(rounds)
    close(list(first.values()), [0.25902, 0.25902, 0.48197], atol=1e-5)
    close(list(second.values()), [0.27476, 0.30179, 0.42345], atol=1e-5)
    # times: the products 0.073038, 0.085212, 0.163394 over 0.321644
    close(list(fedce.run(rounds[:1], mode="times")[0].values()), [0.18470, 0.18470, 0.63060], atol=1e-5)


def test_fedce_two_clients():
    # the cosines of two clients are equal, so only the scores count: b = 0.6, 0.7 over 1.3
    rounds = [{0: ([1.0, 0.0], None), 1: ([0.0, 1.0], None)}, {0: ([1.0, 0.0], 0.8), 1: ([2.0, 1.0], 0.6)}]
    for mode, expected in [("plus", (0.5 + np.array([6, 7]) / 13) / 2), ("times", np.array([6, 7]) / 13)]:
        first, second = fedce.run(rounds, mode=mode)
        close(list(first.values()), [0.5, 0.5])
        close(list(second.values()), expected)


@pytest.mark.parametrize("mode", ["plus", "times"])
def test_fedce_is_uniform_for_clients_that_differ_alike(mode):
    equal = {i: (row, None) for i, row in enumerate(np.eye(4))}
    close(list(fedce.run([equal], mode=mode)[0].values()), [0.25] * 4)
    same = {i: ([1.0, 2.0], None) for i in range(4)}  # every cosine 1: a = 0, floored
    close(list(fedce.run([same], mode=mode)[0].values()), [0.25] * 4)
    alone = fedce.run([{3: ([1.0, 2.0], None)}, {3: ([1.0, 2.0], 0.0)}], mode=mode)
    assert [list(weights.items()) for weights in alone] == [[(3, 1.0)]] * 2


def test_fedce_absent_clients():
    rounds = [
        {0: ([1.0, 0.0], None), 1: ([1.0, 0.0], None), 2: ([0.0, 1.0], None)},
        {0: ([1.0, 0.0], 0.8), 3: ([0.0, 1.0], None)},
        {0: ([1.0, 0.0], 0.8), 2: ([0.0, 1.0], 0.5)},
    ]
    found = fedce.run(rounds)
    for weights, clients in zip(found, rounds, strict=True):
        assert weights.keys() == clients.keys()
        close(sum(weights.values()), 1)
    # client 0 in its third round: cosines 0.70711, 0, 0, scores 0, 0.8, 0.8; client 2 in its second: 0, 0 and 0, 0.5
    a, b = np.array([1 - np.sqrt(0.5) / 3, 1]), np.array([1 - 1.6 / 3, 0.75])
    close(list(found[2].values()), (a / a.sum() + b / b.sum()) / 2)


def test_fedce_leave_one_out_is_the_mean_of_the_others():
    locals_, c = draw(4, 6), np.array([0.1, 0.2, 0.3, 0.4])
    x = c @ locals_
    for i in range(4):
        others = [j for j in range(4) if j != i]
        close(fedce.leave_one_out(x, locals_[i], c[i]), c[others] / c[others].sum() @ locals_[others])
    assert fedce.leave_one_out(2.0, 1.0, 0.0) == 2.0


# WAFL
def test_wafl_climb_by_hand():
    # loss x^2 / 2, gamma 3, alpha 0.25, from 1: 1 + 0.25 (1 - 0) = 1.25, then 1.25 + 0.25 (1.25 - 3 * 0.25) = 1.375
    close(wafl.climb(1.0, lambda v: v, gamma=3, alpha=0.25, steps=2), 1.375)
    # it climbs to gamma x / (gamma - 1) = 1.5, the gap halved by each step: 1 + alpha (1 - gamma) = 0.5
    gaps = [1.5 - wafl.climb(1.0, lambda v: v, gamma=3, alpha=0.25, steps=k) for k in range(6)]
    close(gaps, 0.5 * 0.5 ** np.arange(6))


def test_wafl_softmax_by_hand():
    # w = 1, -1 at x = 0: p = 1/2 each, gradient by x 1 * -1/2 - 1 * 1/2 = -1, so x' = -1. There p_0 = 1 / (1 + e^2) =
    # 0.119203, the gradient -0.880797 - 0.880797 = -1.761594, the pull +0.1, so x' = -1 - 1.661594
    w, b, x = np.array([[1.0], [-1.0]]), np.zeros(2), np.zeros(1)
    close(wafl.climb(x, lambda v: wafl.input_gradient(w, b, v, 0), 0.1, 1.0, 1), [-1.0])
    close(wafl.climb(x, lambda v: wafl.input_gradient(w, b, v, 0), 0.1, 1.0, 2), [-2.661594], rtol=1e-6)
    # one local step at x' = -1, lr 1: error -0.880797, 0.880797 times x'
    after_w, after_b = wafl.local(w, b, [[(x, 0)]], lr=1.0, steps=1)
    close(after_w, [[1 - 0.880797], [-1 + 0.880797]], rtol=1e-5)
    close(after_b, [0.880797, -0.880797], rtol=1e-5)


def test_wafl_input_gradient_is_the_slope_of_the_loss():
    w, b, x, y, h = draw(3, 4), draw(3, seed=1), draw(4, seed=2), 2, 1e-6

    def loss(v):
        return -np.log(wafl.probabilities(w, b, v)[y])

    slope = [(loss(x + h * e) - loss(x - h * e)) / (2 * h) for e in np.eye(4)]
    close(wafl.input_gradient(w, b, x, y), slope, atol=1e-8)


def test_wafl_gradient_is_the_slope_of_the_surrogate():
    # max over x' of loss - gamma/2 |x' - x|^2, with gamma above the curvature: its slope is the loss's at the maximiser
    w, b, x, y, gamma, h = draw(3, 2), draw(3, seed=1), draw(2, seed=2), 1, 8.0, 1e-5

    def surrogate(w):
        moved = wafl.climb(x, lambda v: wafl.input_gradient(w, b, v, y), gamma, 0.1, 300)
        return -np.log(wafl.probabilities(w, b, moved)[y]) - gamma / 2 * ((moved - x) ** 2).sum()

    after, _ = wafl.local(w, b, [[(x, y)]], lr=1.0, gamma=gamma, alpha=0.1, steps=300)
    for index in np.ndindex(w.shape):
        e = np.zeros_like(w)
        e[index] = h
        close((surrogate(w + e) - surrogate(w - e)) / (2 * h), (w - after)[index], atol=1e-7)


def test_wafl_stays_at_the_samples_without_steps_or_with_a_large_gamma():
    w, b, batches = draw(3, 4), draw(3, seed=1), [[(draw(4, seed=i), i % 3) for i in range(5)]]
    plain = wafl.local(w, b, batches, lr=0.1, steps=0)
    for after, expected in zip(wafl.local(w, b, batches, lr=0.1, gamma=1e7, alpha=1e-7), plain, strict=True):
        close(after, expected, atol=1e-5)
    x, error = batches[0][0][0], wafl.probabilities(w, b, batches[0][0][0]) - [1, 0, 0]
    close(wafl.local(w, b, [[(x, 0)]], lr=0.1, steps=0)[0], w - 0.1 * np.outer(error, x))
    locals_, sizes = list(draw(3, 4)), [5, 1, 2]
    close(wafl.server(locals_, sizes), average(np.zeros(4), locals_, sizes))


def test_wafl_climbs():
    w, b, x, y, gamma = draw(3, 4), draw(3, seed=1), draw(4, seed=2), 0, 1.0

    def height(v):
        return -np.log(wafl.probabilities(w, b, v)[y]) - gamma / 2 * ((v - x) ** 2).sum()

    heights = [height(wafl.climb(x, lambda v: wafl.input_gradient(w, b, v, y), gamma, 0.1, k)) for k in range(8)]
    assert all(low < high for low, high in pairwise(heights))


# FedLEx
def test_fedlex_by_hand():
    # squares 1, 4, 0 and 1, 0, 9: means 1, 2, 4.5, so (0, 1, 3.5) / 3.5; a constant tensor leaves the gradient alone
    base = [np.zeros(3), np.array([5.0])]
    guide = fedlex.guidance(base, [[[1.0, 2.0, 0.0], [6.0]], [[1.0, 0.0, 3.0], [5.0]]])
    close(guide[0], [0, 1 / 3.5, 1])
    close(guide[1], [1])
    # gradient w - 1 at 0, lr 0.5: w = 0.5 G; then 0.5 G + 0.5 (1 - 0.5 G) G
    weights = fedlex.local([np.zeros(3)], lambda w: [w[0] - 1], guide[:1], 1, lr=0.5)
    close(weights[0], guide[0] / 2)
    weights = fedlex.local([np.zeros(3)], lambda w: [w[0] - 1], guide[:1], 2, lr=0.5)
    close(weights[0], guide[0] / 2 + (1 - guide[0] / 2) * guide[0] / 2)


def test_fedlex_guidance():
    base = [draw(3, 4), draw(5, seed=1)]
    explored = [[w + draw(*w.shape, seed=10 * i + t) for t, w in enumerate(base)] for i in range(4)]
    guide = fedlex.guidance(base, explored)
    for g, w in zip(guide, base, strict=True):
        assert g.shape == w.shape
        assert g.min() == 0
        assert g.max() == 1
    far = [[w + 7 * (e - w) for w, e in zip(base, weights, strict=True)] for weights in explored[::-1]]
    for g, h in zip(guide, fedlex.guidance(base, far), strict=True):  # neither distance nor order matters
        close(g, h, atol=1e-12)
    unmoved = fedlex.guidance(base, [base, base])
    for g in unmoved:  # nothing explored: plain training
        close(g, np.ones_like(g))
