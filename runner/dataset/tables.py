"""Small tables that come with scikit-learn."""

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from runner.dataset import Dataset, Split, fingerprint, fixed_test, statistics


class Table(Dataset):
    """One of the tables bundled with scikit-learn: inputs (D,) float32, as measured.

    - breast_cancer : 569 samples, 30 features, malignant (0) or benign (1). Wolberg et al., Breast Cancer Wisconsin
      (Diagnostic), UCI 1995.
    - wine : 178 samples, 13 features, 3 cultivars. Aeberhard & Forina, UCI 1991.
    - diabetes : 442 samples, 10 features, regression of the disease's progression after a year. Efron et al., Annals of
      Statistics 2004, arXiv:math/0406456.

    None has a test split of its own: a fixed fifth of every class is the test split, whatever the seed, and for
    regression a fifth of every tenth of the samples in the order of their target (earlier rows first where equal). Mean
    and standard deviation are those of the other four fifths. A regression target is standardised by its own, which are
    in `record`, so that always predicting the mean has an RMSE of about 1.

    Parameters
    ----------
    name : which one.

    Raises
    ------
    ValueError
        scikit-learn is not installed.
    """

    def __init__(self, name: Literal["breast_cancer", "wine", "diabetes"], **settings):
        self.name = name
        self.task = "regression" if name == "diabetes" else "classes"
        super().__init__(**settings)

    def load(self) -> tuple[Split, Split]:
        x, y, self.names = read(self.name)
        self.shape, self.classes = tuple(x.shape[1:]), len(self.names)
        self.fingerprint = fingerprint(x, y)
        strata = y
        if self.task == "regression":
            strata = y.argsort(stable=True).argsort() * 10 // len(y)
        kept, held = fixed_test(strata, f"{self.name} test")
        self.mean, self.std = statistics(x[kept])
        if self.task == "regression":
            self.target = {"mean": y[kept].mean().item(), "std": y[kept].std(correction=0).item()}
            y = ((y - self.target["mean"]) / self.target["std"]).float()
        return Split(x, y).select(kept), Split(x, y).select(held)

    def prepare(self) -> None:
        super().prepare()
        if self.task == "regression":
            self.record |= {"target": self.target}


@lru_cache(maxsize=3)
def read(name: str) -> tuple[Tensor, Tensor, list[str]]:
    """Inputs (N, D) float32; class ids (N,), or floats (N,) float64; the names of the outputs.

    From scikit-learn's files, without the second that importing it takes.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise ValueError(f"dataset={name} is part of scikit-learn, which is not installed: pip install scikit-learn")
    folder = Path(package.submodule_search_locations[0], "datasets", "data")
    if name == "diabetes":
        x = np.loadtxt(folder / "diabetes_data_raw.csv.gz")
        return torch.from_numpy(x).float(), torch.from_numpy(np.loadtxt(folder / "diabetes_target.csv.gz")), [name]
    path = folder / {"breast_cancer": "breast_cancer.csv", "wine": "wine_data.csv"}[name]
    with open(path) as file:  # the first line: samples, features, and the names of the classes
        names = file.readline().strip().split(",")[2:]
        rows = torch.from_numpy(np.loadtxt(file, delimiter=","))
    return rows[:, :-1].float(), rows[:, -1].long(), names
