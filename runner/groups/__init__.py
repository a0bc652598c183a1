"""Groups of parameters: which tensors have another learning rate or weight decay than the rest."""

from collections.abc import Sequence

from runner.core.layout import Named


class Groups:
    """Base of every option of `groups`, and `groups=one`: the same for all tensors, whatever they are.

    Tensors with equal factors are one group of the optimizer's, whichever it is; its settings count for all of them,
    multiplied by the factors.
    """

    def __call__(self, tensors: Sequence[Named]) -> Sequence[tuple[float, float]]:
        """(factor of `lr`, factor of `weight_decay`) of every trainable tensor. ValueError where it cannot."""
        return [(1.0, 1.0)] * len(tensors)
