"""FedLEx (Internò et al., IJCNN 2024, arXiv:2506.18640), as far as its authors' code settles it.

Before round 1, exploring clients (a fraction, by default all) each train from the base weights on their own data.
Then, for every tensor by itself:
    D = mean over explorers of (explored - base)^2                      elementwise
    G = (D - min D) / (max D - min D)                                   "MinMax", in [0, 1]
and in every later local step the gradient is multiplied by G, before clipping and before the optimizer.
So what moved most in exploration keeps its gradient and the element that moved least never moves again. An optimizer
that divides by the size of its gradients (Adam, the code's default) undoes most of G.

Read: ChristianInterno/FedLEx at 35c2437 (2024-06-11, the first), ff03c80 and 69ed581 (2025-02-12, the last):
src/GTL_utils.py (create_mask), src/client/fedlexclient.py (create_scout, update), src/server/fedlexserver.py,
main.py, README.md; and ChristianInterno/AutoFLIP, the same exploration followed by pruning. The paper's text beyond
its abstract was not readable.
Defaults: all clients explore, up to 150 epochs, ended when the last batch's loss has not fallen for 150 (README: 40)
epochs.
Where the code cannot be followed:
- Base: `tl_base` is the model after one epoch on the explorer at hand, overwritten by each explorer. Here: the initial
  global weights, common to all explorers.
- Explorers train one shared model one after the other, and their results are references to it; the server starts from
  there. Here: each from the base, the server too.
- Since 2025-01 it returns ones instead of explored weights (its comment: placeholder). The first version multiplies
  gradients by the base weights, a wrong file; the ones after it by G.
- If all clients explored, a round's G is made of that round's participants, after they trained, for the next round.
  Here: one G of all explorers, used from round 1, as the abstract has it.
- 0/0 where a tensor's D is constant (one element): G = 1 here.
Another normalisation in the code, (D - median) / interquartile range, gives negative factors and is left out.
"""

import numpy as np


def guidance(base, explored):
    """One G per tensor. `base`: a list of tensors; `explored`: such a list for every explorer."""
    found = []
    for t, start in enumerate(base):
        d = np.zeros(np.shape(start))
        for weights in explored:
            d = d + (np.asarray(weights[t], dtype=np.float64) - start) ** 2 / len(explored)
        spread = d.max() - d.min()
        found.append((d - d.min()) / spread if spread > 0 else np.ones_like(d))
    return found


def local(weights, gradient, guide, steps, lr):
    """A client's tensors after `steps` of plain SGD on guided gradients."""
    for _ in range(steps):
        weights = [w - lr * g * guided for w, g, guided in zip(weights, gradient(weights), guide, strict=True)]
    return weights
