"""FedLD (Zeng et al., MICCAI 2024, arXiv:2408.12300), as its authors' code has it; the paper's equations were not
readable.

Client: mean cross-entropy + lam * log(1 + sum over the batch of |softmax(z_n)|_2^2). The code takes the norm of the
whole (B, C) matrix, so the term grows with the batch (it lies between log(1 + B/C) and log(1 + B)); whether the paper
means one term per sample could not be settled.

Server, for each tensor by itself, with the m clients' flattened differences g_i = y_i - x as rows of G:
    (1/m) G G^T = sum_j s_j e_j e_j^T, s falling;  w_j = G^T e_j for the first k = int(k_proportion * m)
    g_i <- sum_j s_j / (sum of all s) * |g_i| * (projection of g_i on w_j) / |projection of g_i on w_j|
    x   <- x + plain mean of the g_i                            sizes of clients do not count
A tensor takes the plain mean of the differences instead while its history is empty (the first round) or all zero, and
always if it has one element. The history is 0.99 * history + 0.01 * step, and serves nothing but that test.

Read: Zeng-Shuang/FedLD at 9440494: methods/fedld.py, svd_tools.py (pcgrad_svd), running.py (train_round_fedld),
federated_main.py, options.py, README.md. Defaults: k_proportion 0.8; lam 0.03 in options.py, 0.1 in the README's
command (retina), which also has lr 0.01, batch 50, 200 rounds of 1 epoch; SGD with momentum 0.5 and decay 5e-4.
`run` agrees with pcgrad_svd to 1e-15 on four rounds of random differences of 2, 5 and 10 clients.
What the code does that is easily missed:
- It turns w_j round so that most clients agree with it. A projection on w_j is one on -w_j: this changes nothing.
- Only the sign of <g_i, w_j> counts, and <g_i, w_j> = m s_j e_j[i]: the step is G^T b with
  b = sum_j s_j / (sum of s) / sqrt(m s_j) * mean_i(|g_i| sign(e_j[i])) * e_j, the same for either sign of e_j.
- The state dict is treated alike: batch-norm statistics are projected too (a variance may turn negative).
- It loops over all clients, so it needs all of them every round.
Departures here, where the code gives NaN or nothing: a projection of length zero adds zero (the code: 0/0), and k is
at least 1 (the code: with one client k = 0 and the model stays where it is).
"""

import numpy as np


def loss(logits, y, lam, real=None):
    """The client's loss; `real` (B,) is 0 for a sample that is padding."""
    real = np.ones(len(y)) if real is None else np.asarray(real, dtype=np.float64)
    cross_entropy, squares = 0.0, 0.0
    for z, target, keep in zip(np.asarray(logits, dtype=np.float64), y, real, strict=True):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        cross_entropy -= keep * np.log(p[target])
        squares += keep * (p**2).sum()
    return cross_entropy / real.sum() + lam * np.log(1 + squares)


def project(g, k_proportion):
    """The step of one tensor from the differences g (m, d)."""
    m = len(g)
    values, vectors = np.linalg.eigh(g @ g.T / m)
    order = np.argsort(values)[::-1]
    s, total = np.maximum(values[order], 0), np.maximum(values, 0).sum()
    w = [g.T @ vectors[:, j] for j in order[: max(1, int(m * k_proportion))]]
    for j in range(len(w)):
        agree = sum(float(g[i] @ w[j] >= 0) for i in range(m))
        w[j] = -w[j] if agree < m - agree else w[j]
    step = np.zeros(g.shape[1])
    for i in range(m):
        for j in range(len(w)):
            length = w[j] @ w[j]
            on = (g[i] @ w[j]) / length * w[j] if length > 0 else np.zeros_like(w[j])
            if np.linalg.norm(on) > 0:
                step += s[j] / total * np.linalg.norm(g[i]) * on / np.linalg.norm(on) / m
    return step


def run(rounds, k_proportion=0.8):
    """The steps of every round, a list of tensors each. `rounds`: for every round the list of clients, each a list of
    one difference per tensor."""
    history, steps = None, []
    for clients in rounds:
        history = history or [None] * len(clients[0])
        step = []
        for t in range(len(clients[0])):
            g = np.stack([np.asarray(client[t], dtype=np.float64).reshape(-1) for client in clients])
            first = history[t] is None or not history[t].any()
            new = g.mean(0) if first or g.shape[1] == 1 else project(g, k_proportion)
            history[t] = new if history[t] is None else 0.99 * history[t] + 0.01 * new
            step.append(new.reshape(np.shape(clients[0][t])))
        steps.append(step)
    return steps
