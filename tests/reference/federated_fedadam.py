"""FedAdam (Reddi et al., ICLR 2021, arXiv:2003.00295, algorithm 2).

    D = mean over the clients that took part of (y_i - x)          a step: minus what an optimizer calls a gradient
    m <- beta1 * m + (1 - beta1) * D
    v <- beta2 * v + (1 - beta2) * D^2
    x <- x + lr * m / (sqrt(v) + tau)

v starts at tau^2 (the paper asks for at least that), m at zero; no bias correction. beta1 = 0.9, beta2 = 0.99; tau =
1e-3 is near the best for all the paper's tasks; lr is tuned per task. m and v live on the server, for parameters.
Read: summaries of the paper in public repositories, flwr's FedAdam and its pull request 4362, SMILELab-FL/FedLab
issue 317, 1xbq1/FedMLLM issue 4 (a picture of algorithm 2). Flower follows it with v = 0 at the start, D weighted by
the number of samples, and since that pull request a bias-corrected lr, one round ahead of Adam's.
Not settled: the start of m, which algorithm 2 does not give (zero everywhere it is implemented).
"""

import numpy as np


def run(x, differences, lr, beta1=0.9, beta2=0.99, tau=1e-3, start=None):
    """Weights after every round, from each round's mean difference; v starts at `start`, tau^2 when None."""
    x = np.array(x, dtype=np.float64)
    m, v, path = np.zeros_like(x), np.full_like(x, tau**2 if start is None else start), []
    for d in differences:
        m = beta1 * m + (1 - beta1) * np.asarray(d)
        v = beta2 * v + (1 - beta2) * np.asarray(d) ** 2
        x = x + lr * m / (np.sqrt(v) + tau)
        path.append(x)
    return path
