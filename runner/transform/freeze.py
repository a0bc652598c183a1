"""Weights that stay as they are."""

from fnmatch import fnmatchcase

from torch import nn

from runner.core.batch import Batch
from runner.transform import Transform


class Freeze(Transform):
    """Parameters whose names match one of `patterns` are not trained: no gradient, no decay, no part of the vector that
    optimizer and sharpness see. With the default only the classifier is trained, a linear probe of `checkpoint=`.

    Statistics of normalisation layers still follow the batches, as those are no parameters.

    Parameters
    ----------
    patterns : names as in the model's state, with * and ?. Default ["body.*"]: all but the classifier.

    Raises
    ------
    ValueError
        From `prepare`: a pattern that no parameter's name matches, or nothing is left to train.
    """

    when = "adapt"

    def __init__(self, patterns: list[str] = ["body.*"]):  # noqa: B006 (only read)
        self.patterns = patterns

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        for pattern in self.patterns:
            if not any(fnmatchcase(name, pattern) for name in named):
                raise ValueError(f"no parameter's name matches {pattern}; one is called {next(iter(named))}")
        for name, parameter in named.items():
            parameter.requires_grad_(not any(fnmatchcase(name, pattern) for pattern in self.patterns))
        sizes = [(parameter.requires_grad, parameter.numel()) for parameter in named.values()]
        self.all = sum(size for _, size in sizes)
        self.frozen = sum(size for trained, size in sizes if not trained)
        if self.frozen == self.all:
            raise ValueError(f"patterns={self.patterns}: nothing is left to train")
        return model

    def notices(self, run) -> list[str]:
        more = "; statistics of normalisation layers still follow the batches" if run.norms else ""
        return [f"transform=freeze: {self.frozen:,} of {self.all:,} weights stay as they are{more}"]
