"""What random crops and flips add to a LeNet step."""

from dataclasses import replace

from scripts.bench import compare
from scripts.bench.cases import CIFAR, LENET

TITLE = "The cost of augmentation"
ABOUT = """\
Steps of LeNet (gather, augment, normalise, forward, backward, update) with augment=crop_flip and without, on images of
MNIST's and of CIFAR's shape. The ratio is the time of a step with augmentation over that of one without."""
PACKAGES = ()
CASES = {LENET: 5, replace(LENET, name="lenet (CIFAR)", shape=CIFAR): 5}  # steps in a measurement


def measure(threads: int = 1, cases: dict = CASES, rounds: tuple = (5, 20)) -> compare.Found:
    names, words = ("plain", "crop_flip"), ("augment=crop_flip",)
    return compare.steps(cases, names, words, rounds=rounds, most=1.05, threads=threads)
