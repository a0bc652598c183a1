"""What a model is measured by on held-out data."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from runner.core.precision import wide

if TYPE_CHECKING:
    from runner.loss import Loss

BINS = 15  # Guo et al. 2017, arXiv:1706.04599, section 5
MANY, FEW = 100, 20  # Liu et al. 2019, arXiv:1904.05160, section 4
TEMPERATURES = 0.01, 100.0
CHUNK = 2**22  # logits that are looked at in fp64 at a time
UNDEFINED = ("auroc", "map")  # nan where the samples do not define them
OF_PROBABILITIES = ("nll", "brier", "ece", "adaptive_ece")  # the others are of the order of the logits alone


def measures(
    logits: Tensor, y: Tensor, task: str, loss: "Loss | None" = None, tasks: Sequence[str] = ()
) -> dict[str, float | None]:
    """The measures of a task over N samples; logits are (N, C) in any dtype, sums are in fp64.

    - "classes", y (N,) class ids: `accuracy` in [0, 1] of the largest logit; `balanced_accuracy`, the mean over the
      classes in y of the accuracy on their samples; `macro_f1`, the mean over the classes in y or predicted of
      2 TP / (2 TP + FP + FN); of more than five classes `top5_accuracy`, y among the five largest logits; `nll`, the
      mean of -log p_y in nats; `brier`, the mean of sum_k (p_k - [k = y])^2, in [0, 2] (Brier 1950); `ece` and
      `adaptive_ece`, the expected calibration error in bins of equal width and of equal mass (see
      `calibration_error`). Two classes have `auroc` too, that of p_1.
    - "multilabel", y (N, C) of 0 and 1: `accuracy`, the share of the N * C labels on the right side of p = 1/2;
      `exact`, the share of samples with all C right; `map`, the mean of `average_precision` over the labels that some
      sample has; `nll`, the mean binary -log p per label, in nats.
    - "regression", y (N,) and logits (N, 1), or both (N, C): `mae` and `rmse`, in the units of y; with a loss that
      defines a normal distribution the mean `nll` of a target too, in nats.

    - "tasks", logits (N, T, C) and y (N, T) class ids: those of classes, first the mean over the tasks and then each
      task's own, whose name begins with that of the task in `tasks`.

    A measure that the samples do not define (an AUROC of one class) is nan, and so are all measures of classes where a
    row of logits has no softmax (one of them nan or inf, say).

    p are the probabilities that the loss defines: see `runner.loss.Loss`. None: the softmax, or sigmoid, of the logits.
    Where it defines none, those in OF_PROBABILITIES are None. Raises ValueError for another task, and for shapes that
    do not fit it.
    """
    if task == "regression":
        return _errors(*(logits, None) if loss is None else loss.moments(logits), y)
    if task == "tasks":
        if logits.dim() != 3 or y.shape != logits.shape[:2] or len(tasks) != y.shape[1]:
            raise _unfit(task, logits, y)
        each = [measures(logits[:, t], y[:, t], "classes", loss) for t in range(len(tasks))]
        mean = {key: None if each[0][key] is None else sum(own[key] for own in each) / len(each) for key in each[0]}
        return mean | {f"{name}_{key}": own[key] for name, own in zip(tasks, each, strict=True) for key in own}
    found = _measures(logits, logits if loss is None else loss.log_probabilities(logits), y, task)
    none = [] if loss is None or loss.probabilities else OF_PROBABILITIES
    return found | {key: None for key in none if key in found}


def rises(key: str) -> bool:
    """Whether a larger value of the measure of this name is a better one."""
    return key.endswith(("accuracy", "exact", "map", "auroc", "miou", "dice", "f1"))


def broken(found: dict[str, float | None]) -> list[str]:
    """The measures that are nan or infinite because what was measured is: neither null nor undefined by the samples."""
    wrong = [key for key, value in found.items() if value is not None and not math.isfinite(value)]
    return wrong if any(not key.endswith(UNDEFINED) for key in wrong) else []


def _measures(logits: Tensor, own: Tensor, y: Tensor, task: str) -> dict[str, float]:
    if task == "classes" and logits.dim() == 2 and y.shape == logits.shape[:1]:
        nll, brier, confidence, right = scores(logits, y, own)
        found = {
            "accuracy": right.mean().item(),
            "balanced_accuracy": class_accuracy(right, y, logits.shape[1])[y.unique().cpu()].mean().item(),
            "macro_f1": macro_f1(confusion(logits, y)),
            "nll": nll.mean().item(),
            "brier": brier.mean().item(),
            "ece": calibration_error(confidence, right),
            "adaptive_ece": calibration_error(confidence, right, equal_mass(confidence)),
        }
        if logits.shape[1] > 5:
            found["top5_accuracy"] = (logits.topk(5).indices == y[:, None]).any(1).double().mean().item()
        if logits.shape[1] == 2:
            found["auroc"] = auroc((wide(logits)[:, 1] - wide(logits)[:, 0]).cpu(), y.cpu() == 1)
        return dict.fromkeys(found, math.nan) if right.isnan().any() else found
    if task == "multilabel" and logits.shape == y.shape:
        logits, own, y = wide(logits).cpu(), wide(own).cpu(), y.cpu()
        nll = F.binary_cross_entropy_with_logits(own, y.to(logits.dtype), reduction="none")
        right = (logits > 0) == (y > 0.5)
        found = {
            "accuracy": right.double().mean().item(),
            "exact": right.all(-1).double().mean().item(),
            "map": average_precision(logits.T.contiguous(), y.T > 0.5).nanmean().item(),
            "nll": nll.double().mean().item(),
        }
        return found if logits.isfinite().all() else dict.fromkeys(found, math.nan)
    raise _unfit(task, logits, y)


def _errors(mean: Tensor, variance: Tensor | None, y: Tensor) -> dict[str, float]:
    if mean.numel() != y.numel():
        raise _unfit("regression", mean, y)
    mean, y = wide(mean).reshape(y.shape).cpu().double(), y.cpu().double()
    error = mean - y
    found = {"mae": error.abs().mean().item(), "rmse": error.square().mean().sqrt().item()}
    if variance is not None:
        spread = variance.reshape(y.shape).cpu().double()
        found["nll"] = ((2 * math.pi * spread).log() + error.square() / spread).mean().item() / 2
    return found


def _unfit(task: str, logits: Tensor, y: Tensor) -> ValueError:
    shapes = f"logits {tuple(logits.shape)} and targets {tuple(y.shape)}"
    return ValueError(f"task {task!r} cannot be measured on {shapes}")


def scores(logits: Tensor, y: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each of N samples -log p_y, sum_k (p_k - [k = y])^2, the largest probability, and 1 where it is that of y; nan
    where its logits have no softmax.

    logits (N, C), y (N,) class ids; four times (N,) fp64 on the CPU. own (N, C): that of which p is the softmax, where
    it is not the logits. What is predicted is theirs: in small probabilities their order may be rounded away.
    """
    logp = F.log_softmax(wide(logits if own is None else own), -1)
    nll = F.nll_loss(logp, y, reduction="none")
    top, guess = logp.amax(-1), logits.argmax(-1)
    square = logp.exp().square_().sum(-1)
    right = torch.where(top.isnan(), torch.nan, (guess == y).to(top.dtype))
    nll, square, top, right = (value.cpu().double() for value in (nll, square, top, right))
    return nll, square - 2 * (-nll).exp() + 1, top.exp(), right


def confusion(logits: Tensor, y: Tensor) -> Tensor:
    """(C, C) int64: how many samples of each class, a row, were taken for each, a column. logits (N, C), y (N,)."""
    classes = logits.shape[1]
    pairs = y.cpu() * classes + logits.argmax(-1).cpu()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def macro_f1(confused: Tensor) -> float:
    """The mean over the classes that occur, in targets or predictions, of 2 TP / (2 TP + FP + FN). (C, C) counts."""
    both = confused.sum(0) + confused.sum(1)
    return (2 * confused.diagonal()[both > 0].double() / both[both > 0]).mean().item()


def class_accuracy(right: Tensor, y: Tensor, classes: int) -> Tensor:
    """(C,) fp64: the accuracy on the samples of each class, nan where there are none. right (N,) as of `scores`."""
    y = y.cpu()
    return torch.bincount(y, right, minlength=classes) / torch.bincount(y, minlength=classes)


def group_accuracy(by_class: Tensor, counts: Tensor, many: int = MANY, few: int = FEW) -> dict[str, float]:
    """The mean accuracy of the classes with many training samples, a medium number, and few (Liu et al., CVPR 2019,
    arXiv:1904.05160, section 4): more than 100, 20 to 100, fewer than 20.

    by_class (C,), nan where a class was not tested and does not count; counts (C,) training samples. Classes count
    alike, as in the authors' code. A group without classes has no key.
    """
    groups = {"many": counts > many, "medium": (counts >= few) & (counts <= many), "few": counts < few}
    groups = {name: by_class[group & ~by_class.isnan()] for name, group in groups.items()}
    return {f"{name}_accuracy": group.mean().item() for name, group in groups.items() if len(group)}


# ---- calibration


def equal_width(bins: int = BINS) -> Tensor:
    """(bins - 1,) the edges between bins of equal width."""
    return torch.arange(1, bins, dtype=torch.float64) / bins


def equal_mass(confidence: Tensor, bins: int = BINS) -> Tensor:
    """(bins - 1,) the edges between bins with equally many of these N samples: bin m ends with the ceil(m N / bins)-th
    smallest confidence, and with it all that are equal to it (Mukhoti et al. 2020, arXiv:2002.09437, "Adaptive ECE").

    The authors' code (torrvision/focal_calibration) interpolates its edges and begins with the smallest confidence,
    which is not above it: that sample is in no bin there, and the others' shares do not sum to 1.
    """
    ends = [-(-m * len(confidence) // bins) for m in range(1, bins)]
    return confidence.sort().values[torch.tensor(ends) - 1]


def binned(confidence: Tensor, right: Tensor, edges: Tensor) -> Tensor:
    """(3, bins): how many samples have their confidence in (edge, next edge], the sum of it, and of `right`."""
    found = torch.zeros(3, len(edges) + 1, dtype=torch.float64)
    values = torch.stack([torch.ones_like(confidence), confidence, right])
    return found.index_add_(1, torch.bucketize(confidence, edges), values)


def calibration_error(confidence: Tensor, right: Tensor, edges: Tensor | None = None) -> float:
    """Expected calibration error (Guo et al., ICML 2017, arXiv:1706.04599, equation 3).

        ECE = sum_m |B_m| / N * |accuracy(B_m) - confidence(B_m)|

    B_m holds the samples whose confidence, the largest probability, is in (edge_(m-1), edge_m].
    confidence, right: (N,) fp64, `right` being 1 where the prediction is correct and 0 elsewhere.
    edges : between the bins, ascending. None: 15 bins of equal width.
    """
    _, sure, hits = binned(confidence, right, equal_width() if edges is None else edges)
    return ((hits - sure).abs().sum() / len(right)).item()


def temperature(logits: Tensor, y: Tensor) -> float:
    """The T with the smallest NLL of softmax(logits / T) on these samples (Guo et al. 2017, section 4.2).

    logits (N, C), y (N,) class ids. In b = 1 / T the NLL is convex: Newton's method from b = 1, with bisection where a
    step leaves the bracket. T is at least 0.01 and at most 100; where every sample is right, the NLL falls with T to
    the bound. nan where a logit is.
    """
    parts = wide(logits).cpu().split(max(1, CHUNK // logits.shape[1]))
    targets = y.cpu().split(len(parts[0]))

    def slopes(b: float) -> tuple[float, float]:
        """The first and second derivative of the NLL's sum."""
        first = second = 0.0
        for z, own in zip(parts, targets, strict=True):
            z = z.double()
            d = z - z.gather(1, own[:, None])
            p = (b * d).softmax(-1)
            mean = (p * d).sum(-1)
            first += mean.sum().item()
            second += ((p * d.square()).sum(-1) - mean.square()).sum().item()
        return first, second

    b, low, high = 1.0, 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    start = slopes(low)[0]
    if start == 0 or math.isnan(start):  # logits that are all equal
        return b + start
    if start > 0:
        return TEMPERATURES[1]
    if slopes(high)[0] <= 0:
        return TEMPERATURES[0]
    for _ in range(100):
        slope, curvature = slopes(b)
        low, high = (b, high) if slope < 0 else (low, b)
        step = b - slope / curvature if curvature > 0 else low
        if not low < step < high:
            step = (low + high) / 2
        b, before = step, b
        if abs(b - before) <= 1e-9 * before:
            break
    return 1 / b


# ---- rankings


def auroc(score: Tensor, positive: Tensor) -> float:
    """The area under the ROC curve: the probability that a positive sample has a larger score than a negative one,
    ties counting one half (Hanley & McNeil 1982). score (N,), positive (N,) bool; nan unless there are both.
    """
    _, place, ties = score.unique(return_inverse=True, return_counts=True)
    rank = (ties.cumsum(0) - (ties - 1) / 2)[place]  # from 1, of equal scores the mean of theirs
    p = positive.sum().double()
    return ((rank[positive].double().sum() - p * (p + 1) / 2) / (p * (len(score) - p))).item()


def average_precision(score: Tensor, positive: Tensor) -> Tensor:
    """sum_n (R_n - R_(n-1)) P_n over the thresholds n that score (..., N) has, from the largest on, P being precision
    and R recall of `positive`, (..., N) bool. (...,) fp64, nan where nothing is positive.
    """
    score, order = score.sort(-1, descending=True)
    positive = positive.gather(-1, order).double()
    at = torch.arange(score.shape[-1])
    # equal scores pass a threshold together: each has the precision of the last of them
    apart = torch.ones_like(score, dtype=torch.bool)
    apart[..., :-1] = score[..., 1:] != score[..., :-1]
    last = torch.where(apart, at, len(at)).flip(-1).cummin(-1).values.flip(-1)
    precision = (positive.cumsum(-1) / (at + 1)).gather(-1, last)
    return (precision * positive).sum(-1) / positive.sum(-1)
