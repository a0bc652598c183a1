"""Robust weight perturbation."""

import torch

from runner.core.batch import Pass
from runner.core.schema import Count, NonNegative, Positive
from runner.core.weights import Weights
from runner.sharpness import Closure, Sharpness, nameless


class RobustWeightPerturbation(Sharpness):
    """Step with the gradient at weights perturbed against the samples that are learned already (Yu et al., IJCAI 2022,
    arXiv:2205.14826); for adversarial training, with hook=pgd.

        v_0 = 0,   u_{k+1} = u_k + grad (1/B) sum_i 1[l_i(w + v_k) < threshold] l_i(w + v_k),
        v_{k+1} = gamma * ||w|| / ||u_{k+1}|| * u_{k+1};      the step uses grad L(w + v_steps)

    A perturbation against samples of large loss harms robustness, so only losses below the threshold push it (the
    paper's loss stationary condition). Settled from the authors' code (ChaojianYu/Robust-Weight-Perturbation,
    AT_AWP_RWP/utils_rwp.py): only weights with more than one axis are perturbed, no biases or normalisation scales;
    both norms are over all of them together, not by layer; directions add up over the steps and only their sum is
    scaled; a step more or less costs a pass whether or not a loss is below the threshold. Without the threshold and
    with norms by layer this is adversarial weight perturbation (Wu et al., NeurIPS 2020, arXiv:2004.05884). As there, a
    weight is what is called one: layers of factors in its place (quantization=littlebit) and position embeddings are
    not perturbed, and a run says so.

    Parameters
    ----------
    gamma : length of the perturbation relative to the weights. Default 0.01.
    threshold : c_min. Default 1.7, for CIFAR-10 and SVHN; 4.0 for CIFAR-100.
    steps : of the perturbation. Default 10.
    m : samples that share one perturbation (see `Sharpness.m`). Default null: the whole batch.
    """

    replicas = True

    def __init__(self, gamma: NonNegative = 0.01, threshold: Positive = 1.7, steps: Count = 10, m: Count | None = None):
        self.gamma = gamma
        self.threshold = threshold
        self.steps = steps
        self.m = m

    def __call__(self, closure: Closure, weights: Weights) -> Pass:
        start = weights.clone()
        length = self.gamma * weights.norm(self._matrices(weights, start))
        direction = torch.zeros_like(start)
        first = None
        with weights.restored():
            for _ in range(self.steps):
                found = closure(below=self.threshold)
                first = first or found
                direction += self._matrices(weights, weights.grad)
                weights.copy_(start)
                weights.add_(direction, length / (weights.norm(direction) + 1e-20))
            closure()
        return first

    def notices(self, run) -> list[str]:
        if names := nameless(run.weights):
            return [f"sharpness=robust_weight_perturbation leaves out what is not called a weight: {names}"]
        return []

    def _matrices(self, weights: Weights, vector: torch.Tensor) -> torch.Tensor:
        """A copy of the vector with zeros for what is not perturbed."""
        kept = vector.clone()
        for name, view in weights.views(kept):
            if "weight" not in name or view.dim() - vector.dim() < 1:  # a replica axis counts in both
                view.fill_(0.0)
        return kept
