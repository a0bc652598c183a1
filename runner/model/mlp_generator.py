"""A multilayer perceptron that gives as many numbers as it takes."""

from math import prod

from runner.core.schema import Count
from runner.model.mlp import Mlp


class MlpGenerator(Mlp):
    """The perceptron of model=mlp from z to an input: as many outputs as an input has numbers, for losses that call it
    with noise of the shape of inputs (loss=wgan).

    Parameters
    ----------
    shape : of an input.
    hidden : list of int, default [128, 128, 128]
        The width of every hidden layer.
    """

    def __init__(self, shape: tuple[int, ...], hidden: list[Count] = [128, 128, 128]):  # noqa: B006 (only read)
        super().__init__(shape, prod(shape), hidden)
