"""Group normalisation instead of batch normalisation."""

from math import gcd

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.core.batch import Batch
from runner.core.schema import Count
from runner.transform import Transform


class GroupNormalisation(Transform):
    """Every BatchNorm becomes GroupNorm (Wu & He, ECCV 2018, arXiv:1803.08494): each sample's C channels in G groups,

        y = (x - mean) / sqrt(var + eps) * gamma + beta     mean, var over a group's channels and its positions

    so no sample sees another, and there are no running statistics. Of `groups` and the channels the greatest common
    divisor is G. eps, gamma and beta are those of the layer that is replaced.

    Parameters
    ----------
    groups : int, default 32
        As in the paper.

    Raises
    ------
    ValueError
        From `prepare`: a model without BatchNorm.
    """

    def __init__(self, groups: Count = 32):
        self.groups = groups

    def prepare(self, model: nn.Module, batch: Batch) -> nn.Module:
        self.made: list[int] = []
        for name, norm in [pair for pair in model.named_modules() if isinstance(pair[1], _BatchNorm)]:
            made = nn.GroupNorm(gcd(self.groups, norm.num_features), norm.num_features, norm.eps, norm.affine)
            if norm.affine:
                made.weight, made.bias = norm.weight, norm.bias
            # timm has layers with an activation in them
            rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
            model.set_submodule(name, nn.Sequential(made, *rest) if rest else made)
            self.made.append(made.num_groups)
        if not self.made:
            raise ValueError(f"{type(model).__name__} has no BatchNorm to replace")
        return model

    def notices(self, run) -> list[str]:
        few = sum(groups < self.groups for groups in self.made)
        if not few:
            return []
        return [
            f"transform=groupnorm: {few} of {len(self.made)} layers have fewer than {self.groups} groups, as their "
            f"channels divide ({min(self.made)} at least)"
        ]
