"""The references of the federated methods against numbers worked out by hand and known special cases."""

import numpy as np
import pytest

from tests.federated.references import average, close, draw, load

fedprox, fednova, scaffold, fedadam = load("fedprox"), load("fednova"), load("scaffold"), load("fedadam")


# FedProx
def test_fedprox_by_hand():
    # loss (y - 1)^2 / 2 from x = 0, lr 0.5, mu 1: y = 0.5 (no pull yet), then 0.5 - 0.5 (-0.5 + 0.5) = 0.5
    assert fedprox.local(0.0, lambda y: y - 1, 1, lr=0.5, mu=1.0) == 0.5
    assert fedprox.local(0.0, lambda y: y - 1, 2, lr=0.5, mu=1.0) == 0.5
    # momentum 0.9: the second velocity is 0.9 * (-1) + 0 = -0.9
    close(fedprox.local(0.0, lambda y: y - 1, 2, lr=0.5, mu=1.0, momentum=0.9), 0.5 + 0.45)


def test_fedprox_ends_between_the_clients_and_the_servers_weights():
    # h (y - b)^2 / 2 + mu (y - x)^2 / 2 is least at (h b + mu x) / (h + mu) = (2 * 3 + 0.5 * 1) / 2.5
    close(fedprox.local(1.0, lambda y: 2 * (y - 3), 200, lr=0.1, mu=0.5), 2.6)
    close(fedprox.local(1.0, lambda y: 2 * (y - 3), 200, lr=0.1, mu=0.0), 3.0)


# FedNova
def test_fednova_coefficients_by_hand():
    close(fednova.coefficients(3), [1, 1, 1])
    # y moves by v1 = g1, v2 = 0.9 g1 + g2, v3 = 0.81 g1 + 0.9 g2 + g3
    close(fednova.coefficients(3, momentum=0.9), [2.71, 1.9, 1])
    # nesterov moves by g + 0.9 v: g1 + 0.9 g1, then 0.81 g1 + g2 + 0.9 g2
    close(fednova.coefficients(2, momentum=0.9, nesterov=True), [1.9 + 0.81, 1.9])
    # dampening spares the first step: v1 = g1, v2 = 0.9 g1 + 0.5 g2
    close(fednova.coefficients(2, momentum=0.9, dampening=0.5), [1.9, 0.5])
    # a pull of 0.1 (y - x) leaves 0.9 of what was there: g1, 0.9 g1 + g2, 0.81 g1 + 0.9 g2 + g3
    close(fednova.coefficients(3, prox=0.1), [0.81, 0.9, 1])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_fednova_norm_is_the_published_closed_form(steps, momentum):
    # NIID-Bench: (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)
    expected = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    close(fednova.coefficients(steps, momentum=momentum).sum(), expected)


def test_fednova_by_hand():
    # p = 1/4, 3/4; tau_eff = 2/4 + 3 * 4/4 = 3.5; d = (0 - 4) / 2, (0 - 4) / 4
    # x = 0 - 3.5 (1/4 * -2 + 3/4 * -1) = 4.375, where FedAvg has 4
    assert fednova.server(0.0, [4.0, 4.0], sizes=[1, 3], norms=[2, 4]) == 4.375
    assert average(0.0, [4.0, 4.0], [1, 3]) == 4.0


def test_fednova_with_equal_local_steps_is_fedavg():
    x, locals_, sizes = draw(5), list(draw(3, 5, seed=1)), [4, 1, 7]
    close(fednova.server(x, locals_, sizes, norms=[3.7] * 3), average(x, locals_, sizes))


def test_fednova_steps_along_the_weighted_gradient_whatever_the_local_steps():
    x, gradients, sizes, steps, rho, lr = draw(4), draw(3, 4, seed=1), np.array([4, 1, 7]), [2, 9, 5], 0.9, 0.1
    norms, locals_ = [fednova.coefficients(k, momentum=rho).sum() for k in steps], []
    for gradient, k in zip(gradients, steps, strict=True):
        y, velocity = x, 0.0
        for _ in range(k):
            velocity = rho * velocity + gradient
            y = y - lr * velocity
        locals_.append(y)
    p = sizes / sizes.sum()
    close(fednova.server(x, locals_, sizes, norms), x - lr * (p @ norms) * (p @ gradients))


# SCAFFOLD
def test_scaffold_by_hand():
    # losses (y - 1)^2 / 2 and (y + 1)^2 / 2, lr 0.5, two steps, from 0. Round 1: y = 0.5, 0.75 and the mirror image;
    # c_1 = 0 - 0 + (0 - 0.75) / (2 * 0.5) = -0.75, c_2 = 0.75, x = 0, c = 0.
    # Round 2: gradients -1 and -0.875, corrected by +0.75: y = 0.125, 0.1875;
    # c_1 = -0.75 - 0 + (0 - 0.1875) / 1 = -0.9375, the mean of -1 and -0.875.
    x, c, variates = 0.0, 0.0, [0.0, 0.0]
    for expected_y, expected_c in [(0.75, -0.75), (0.1875, -0.9375)]:
        results = {
            i: scaffold.local(x, lambda y, b=b: y - b, 2, 0.5, c, variates[i]) for i, b in enumerate([1.0, -1.0])
        }
        close(results[0], (expected_y, expected_c))
        x, c, variates = scaffold.server(x, c, variates, results)
        close([x, c, *variates], [0, 0, expected_c, -expected_c])


@pytest.mark.parametrize("place", ["gradient", "step"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_variates_average_to_the_servers_with_absent_clients_and_unequal_weights(momentum, place):
    centres, x, c = draw(4, 3), np.zeros(3), np.zeros(3)
    variates = [np.zeros(3)] * 4
    for participants in ([0, 1, 2, 3], [0, 2], [3], [1, 2, 3]):
        results = {}
        for i in participants:
            results[i] = scaffold.local(x, lambda y, i=i: y - centres[i], 2 + i, 0.1, c, variates[i], momentum, place)
        before, weights = variates, {i: 1.0 + i for i in participants}
        x, c, variates = scaffold.server(x, c, variates, results, weights)
        close(c, np.mean(variates, axis=0), atol=1e-12)
        for i in set(range(4)) - set(participants):
            assert variates[i] is before[i]


@pytest.mark.parametrize("place", ["gradient", "step"])
def test_scaffold_finds_the_optimum_of_the_sum_where_fedavg_does_not(place):
    # h (y - b)^2 / 2 with (h, b) = (1, 0) and (3, 1): the sum is least at 3/4
    curves, x, c, variates = [(1.0, 0.0), (3.0, 1.0)], 0.0, 0.0, [0.0, 0.0]
    for _ in range(300):
        results = {}
        for i, (h, b) in enumerate(curves):
            results[i] = scaffold.local(x, lambda y, h=h, b=b: h * (y - b), 5, 0.1, c, variates[i], place=place)
        x, c, variates = scaffold.server(x, c, variates, results)
    close(x, 0.75, atol=1e-9)
    y = 0.0
    for _ in range(300):  # fixed point of FedAvg: 1 - 0.9^5 and 1 - 0.7^5 of the way
        y = np.mean([y + (1 - (1 - 0.1 * h) ** 5) * (b - y) for h, b in curves])
    close(y, (1 - 0.7**5) / (2 - 0.7**5 - 0.9**5))
    assert abs(y - 0.75) > 0.05


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_both_places_move_equally_far_in_two_rounds_of_constant_gradients(momentum):
    gradients, ends = [1.0, -3.0], []
    for place in ("gradient", "step"):
        x, c, variates = 0.0, 0.0, [0.0, 0.0]
        for _ in range(2):
            results = {
                i: scaffold.local(x, lambda y, g=g: g, 6, 0.1, c, variates[i], momentum, place)
                for i, g in enumerate(gradients)
            }
            x, c, variates = scaffold.server(x, c, variates, results)
        ends.append([y for y, _ in results.values()])
    close(ends[0], ends[1])
    close(ends[0][0], ends[0][1])  # after one round the correction makes both gradients the mean


# FedAdam
def test_fedadam_by_hand():
    # round 1: m = 0.1, v = 0.99e-6 + 0.01 = 0.01000099, step 0.1 * 0.1 / (0.100004950 + 0.001) = 0.0990050
    # round 2: m = 0.19, v = 0.0099009801 + 0.01 = 0.0199009801, step 0.1 * 0.19 / (0.141070833 + 0.001) = 0.1337361
    close(fedadam.run([0.0], [[1.0], [1.0]], lr=0.1), [[0.0990050], [0.0990050 + 0.1337361]], rtol=1e-6)


def test_fedadam_with_a_large_tau_is_fedavg():
    differences = draw(3, 4)
    path = fedadam.run(np.zeros(4), differences, lr=1e9, beta1=0, beta2=0, tau=1e9)
    close(path, np.cumsum(differences, axis=0), rtol=1e-6)


def test_fedadam_from_zero_is_adam_without_its_bias_correction():
    differences, x, m, v, path = draw(5, 3), np.zeros(3), 0.0, 0.0, []
    for t, d in enumerate(
        differences, 1
    ):  # Adam on the gradient -d, its lr and eps taken so that the correction is gone
        m, v = 0.9 * m - 0.1 * d, 0.99 * v + 0.01 * d * d
        root = np.sqrt(1 - 0.99**t)
        lr, eps = 0.1 * (1 - 0.9**t) / root, 1e-3 / root
        x = x - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + eps)
        path.append(x)
    close(fedadam.run(np.zeros(3), differences, lr=0.1, start=0.0), path)
