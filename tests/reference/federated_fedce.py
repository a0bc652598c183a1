"""FedCE (Jiang et al., CVPR 2023, arXiv:2303.16520): weights from each client's estimated contribution.

For the clients i of a round, with their differences g_i (all trained parameters as one vector) and prior weights c_i:
    cos_i = cosine(g_i, sum over j of c_j g_j - c_i g_i),   0 if either has length zero
    a_i   = max(0, 1 - mean of all cos_i so far)
    b_i   = 1 - mean of all scores so far; a client's score in its first round counts as 0, so b_i = 1 there
    both are floored at epsilon and divided by their sum; w_i = a_i + b_i ("plus") or a_i * b_i ("times"), floored at
    epsilon and divided by the sum; the server adds sum_i w_i g_i, and w is the next round's c.
The score is that of the leave-one-out model (x - c_i y_i) / (1 - c_i) on the client's own validation data, before it
trains: x the new global weights, y_i its weights at the end of the round before, c_i its weight in making x. Higher
is better and within [0, 1]: Dice for segmentation, accuracy for classification (as in that repository's CIFAR-10
client).
Prior weights are uniform in round 0. The weights of round 0 are not: the cosines of that round are in them already.

Read: NVIDIA/NVFlare nvflare/app_opt/pt/fedce.py, recipes/fedce.py and the two client scripts of research/fed-ce
(2026), and the first release, research/fed-ce .../fedce_assembler.py and supervised_monai_prostate_fedce_learner.py
(2023); NVIDIA is the paper's second affiliation. The paper's equations were not readable. This is the 2026 version:
mode "plus", epsilon 1e-6, means over the rounds that a client took part in, a client without a prior weight gets 1
before they are normalised.
`run` agrees with FedCEModelAggregator (in fp32) to 1e-8 on six rounds of random updates, both modes.
The 2023 version never stores the weights it computes, so its c stays uniform in the cosines for good; it floors at
1e-3 after dividing, so the weights may sum to a little more than 1. By its README the two versions' weights correlate
0.998 over 100 rounds of the prostate data. There the leave-one-out weights are the last computed ones, as here.
Not settled: a client that was away the round before is not part of x. Its c is 0 (the default of that code), its
leave-one-out model x itself. With c = 1 (one client) there is no such model: its score is taken as 0.
"""

import numpy as np


def leave_one_out(x, y, c):
    return (x - c * y) / (1 - c)


def normalised(values, epsilon):
    values = {i: max(value, epsilon) for i, value in values.items()}
    total = sum(values.values())
    return {i: value / total for i, value in values.items()}


def run(rounds, mode="plus", epsilon=1e-6):
    """Every round's {client: weight}. `rounds`: for every round {client: (difference, score)}, score None in the
    client's first round."""
    weights, cosines, scores, found = {}, {}, {}, []
    for clients in rounds:
        prior = normalised({i: weights.get(i, 1.0) for i in clients}, epsilon)
        consensus = 0.0
        for i, (g, _) in clients.items():
            consensus = consensus + prior[i] * np.asarray(g, dtype=np.float64)
        a, b = {}, {}
        for i, (g, score) in clients.items():
            g = np.asarray(g, dtype=np.float64)
            others = consensus - prior[i] * g
            lengths = np.linalg.norm(g) * np.linalg.norm(others)
            cosines.setdefault(i, []).append(g @ others / lengths if lengths > 0 else 0.0)
            scores.setdefault(i, []).append(0.0 if score is None else score)
            a[i], b[i] = max(0.0, 1 - np.mean(cosines[i])), 1 - np.mean(scores[i])
        a, b = normalised(a, epsilon), normalised(b, epsilon)
        weights = normalised({i: a[i] + b[i] if mode == "plus" else a[i] * b[i] for i in clients}, epsilon)
        found.append(weights)
    return found
