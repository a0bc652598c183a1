"""Points around a grid in the plane: for what learns to make samples."""

import numpy as np
import torch
from torch import Tensor

from runner.core import keyed
from runner.core.schema import Count, Positive
from runner.dataset import Dataset, Split, fingerprint

CENTRES = torch.tensor([[x, y] for x in range(-4, 5, 2) for y in range(-4, 5, 2)], dtype=torch.float32)
GOOD = 3.0  # standard deviations from a centre


class Gaussians25(Dataset):
    """25 Gaussians on a grid, centres (x, y) with x, y of -4, -2, 0, 2, 4 and standard deviation `spread` (as in the
    code of Gulrajani et al., NeurIPS 2017, arXiv:1704.00028, with 0.05). Inputs are (2,) float32 and 25 classes, the
    centre that a point is of, drawn uniformly. The points are the same for every seed.

    Of made samples it says `good`, the share that is within three standard deviations of a centre (98.9 % of true
    ones), and `modes`, the number of centres that at least one good sample is near.

    Parameters
    ----------
    size : samples for training. Default 10,000. A quarter as many more are the test split.
    spread : default 0.05.
    """

    classes = 25
    shape = (2,)

    def __init__(self, *, size: Count = 10_000, spread: Positive = 0.05, **settings):
        super().__init__(**settings)
        self.size, self.spread = size, spread

    def load(self) -> tuple[Split, Split]:
        draw, count = keyed.generator(0, "gaussians25"), self.size + max(self.size // 4, 1)
        y = torch.from_numpy(draw.integers(len(CENTRES), size=count))
        noise = torch.from_numpy(draw.standard_normal((count, 2)).astype(np.float32))
        x = CENTRES[y] + self.spread * noise
        self.mean, self.std = x[: self.size].mean(0), x[: self.size].std(0)
        self.fingerprint = fingerprint(x, y)
        rows = torch.arange(count)
        whole = Split(x, y)
        return whole.select(rows[: self.size]), whole.select(rows[self.size :])

    def judge(self, samples: Tensor) -> dict[str, float]:
        far, nearest = torch.cdist(samples.double(), CENTRES.to(samples).double()).min(1)
        good = far <= GOOD * self.spread
        return {"good": good.double().mean().item(), "modes": float(len(nearest[good].unique()))}
