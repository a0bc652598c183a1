"""Colored MNIST: digits whose colour predicts the label better than their shape does, until the test reverses it."""

import numpy as np
import torch

from runner.core import keyed
from runner.core.schema import Fraction
from runner.dataset import Dataset, Split, fingerprint
from runner.dataset.hub import Hub

TEST = 10_000  # samples at the end of MNIST's training file that are the test environment
SIDE = 28  # pixels of an MNIST image


class ColoredMnist(Dataset):
    """Colored MNIST (Arjovsky et al. 2019, arXiv:1907.02893, section 5.2): inputs (2, 14, 14) uint8, 2 classes.

    From the 60,000 images of MNIST's training file, in its order; MNIST's own test file is not used.

    - environments: the last 10,000 images are the test split; the first 50,000 are dealt at random and as evenly as
      can be to the training environments.
    - image: every second row and column, from the first on.
    - label: 1 where the digit is below 5, else 0; then flipped with probability `label_noise`.
    - colour: the label, noise included; then flipped with an environment's probability in `colour_noise`. Channel
      `colour` holds the image and the other one is zero.

    So a rule by shape is right for at most 1 - label_noise of the samples anywhere, and the rule "label = colour" for
    1 - colour_noise: with the defaults 85 % in training and 10 % in the test. Test labels are as noisy as the others.
    Inputs are scaled to 0..1 and nothing else: mean 0, standard deviation 255.

    The authors' code (main.py of the public InvariantRiskMinimization repository, and cmnist.py of
    Gradient_Starvation, Pezeshki et al. 2021) shuffles the 50,000 anew for every seed and gives the even and the odd
    places to the two environments: the same distribution as here. All three draws are made anew for every
    `damage_seed`, each with a generator of its own, so that another `label_noise` keeps the environments and the
    samples whose colour is flipped.

    `Split.domain` is the environment: 0, 1, ... in training, and the next number in the test. The settings of every
    data set apply after all this: `noise` flips training labels that were already noisy and leaves colours alone.

    Parameters
    ----------
    label_noise : probability that a label is flipped. Default 0.25.
    colour_noise : probability that a colour is flipped, for each training environment and, last, for the test. Default
        [0.2, 0.1, 0.9].
    val : see `Dataset`; default 0, as the authors hold nothing out.
    data_dir, cache_dir : as for dataset=mnist, whose files and cache these are.

    Attributes
    ----------
    record : `environments` has the number of samples and the realised share of flipped labels and flipped colours of
        each environment, the test's last, before a subset is taken.

    Raises
    ------
    ValueError
        Fewer than two values in `colour_noise`; MNIST is not to be found, or is not MNIST.
    """

    classes = 2
    shape = (2, SIDE // 2, SIDE // 2)
    bounds = (0, 255)
    names = ["5 to 9", "0 to 4"]

    def __init__(
        self,
        *,
        label_noise: Fraction = 0.25,
        colour_noise: list[Fraction] = [0.2, 0.1, 0.9],  # noqa: B006 (only read)
        val: Fraction = 0.0,
        data_dir: str | None = None,
        cache_dir: str = "~/.cache/runner",
        **settings,
    ):
        super().__init__(val=val, **settings)
        if len(colour_noise) < 2:
            raise ValueError(
                f"dataset.colour_noise={list(colour_noise)} must have a probability for each training environment and, "
                "last, one for the test, such as [0.2,0.1,0.9]"
            )
        self.label_noise, self.colour_noise = label_noise, list(colour_noise)
        self.mnist = Hub(id="ylecun/mnist", name="mnist", config="mnist", data_dir=data_dir, cache_dir=cache_dir)

    def load(self) -> tuple[Split, Split]:
        images, _ = self.mnist.load()
        samples, test = len(images), len(self.colour_noise) - 1
        if tuple(images.x.shape[1:]) != (1, SIDE, SIDE) or samples - TEST < test:
            raise ValueError(
                f"data set 'mnist' must have images of 1x{SIDE}x{SIDE} and more than {TEST:,} of them in its training "
                f"file, got {samples:,} of {'x'.join(map(str, images.x.shape[1:]))}"
            )

        environment = np.full(samples, test, dtype=np.int64)
        order = self._draw("environments").permutation(samples - TEST)
        environment[order] = np.arange(len(order)) % test
        flipped_label = self._draw("labels").random(samples) < self.label_noise
        label = (images.y.numpy() < 5) ^ flipped_label
        flipped_colour = self._draw("colours").random(samples) < np.array(self.colour_noise)[environment]
        colour = label ^ flipped_colour

        x = torch.zeros(samples, *self.shape, dtype=torch.uint8)
        x[torch.arange(samples), torch.from_numpy(colour).long()] = images.x[:, 0, ::2, ::2]
        y, domain = torch.from_numpy(label).long(), torch.from_numpy(environment)
        self.mean, self.std = torch.zeros(2), torch.full((2,), 255.0)
        self.fingerprint = fingerprint(x, y, domain)
        self.environments = [
            {
                "samples": int((environment == e).sum()),
                "flipped_labels": float(flipped_label[environment == e].mean()),
                "flipped_colours": float(flipped_colour[environment == e].mean()),
            }
            for e in range(test + 1)
        ]
        whole, first = Split(x, y, domain), samples - TEST
        return whole.select(torch.arange(first)), whole.select(torch.arange(first, samples))

    @property
    def local(self) -> bool:
        return self.mnist.local

    def prepare(self) -> None:
        super().prepare()
        self.record |= {"environments": self.environments}

    def _draw(self, what: str) -> np.random.Generator:
        return keyed.generator(self.damage_seed, f"colored_mnist {what}")
