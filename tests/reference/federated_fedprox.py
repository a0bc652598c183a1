"""FedProx (Li et al., MLSys 2020, arXiv:1812.06127, algorithm 2): FedAvg whose clients minimise

    f_i(y) + mu / 2 * |y - x|^2,   so each local gradient is   g(y) + mu * (y - x),   x the weights sent to the client.

The term is over parameters, not buffers, and has no gradient at the first local step.
Read: litian96/FedProx flearn/optimizer/pgd.py (the authors': the pull is added to the gradient of plain SGD),
Xtra-Computing/NIID-Bench experiments.py and flwr baselines/niid_bench models.py (a penalty in the loss: with momentum
the pull goes through the velocity), JYWa/FedNova distoptim/FedProx.py (added after the momentum). Without momentum
all are the same; here it is in the loss.
mu: 0.01 in the authors' code and Flower; NIID-Bench, like Flower, picks from 0.001 (its code's default), 0.01, 0.1, 1.
"""


def local(x, gradient, steps, lr, mu, momentum=0.0):
    """One client's weights after `steps` steps from `x`; numbers or arrays."""
    y, velocity = x, 0.0
    for _ in range(steps):
        velocity = momentum * velocity + gradient(y) + mu * (y - x)
        y = y - lr * velocity
    return y
