"""What `load` returned, checked before anything is made of it: every mistake is one line with data set and split."""

import math

import torch
from torch import Tensor

from runner.core.blame import blame

MANY = 1 << 20  # more outputs than this, and than samples, are a mistake in the labels and would fill the memory
SEAM = "load() must return two splits, (train, test), each a runner.dataset.Split(x, y)"


def title(dataset) -> str:
    """What messages call a data set: its name, or the class of one that has none, `my_data.Mine`."""
    return getattr(dataset, "name", None) or f"{type(dataset).__module__}.{type(dataset).__qualname__}"


def loaded(dataset) -> tuple:
    """What `load` returned, where that is what the seam asks for. Targets come back in the dtype that losses take:
    class ids as int64, other integers and half precision as float32, both exact.

    Raises
    ------
    ValueError
        It is something else, or `load` failed, or inputs or targets are not what the data set declares.
    """
    name = title(dataset)
    if not hasattr(dataset, "damage_seed"):
        raise ValueError(f"data set '{name}': its __init__ must call super().__init__(**settings)")
    try:
        pair = dataset.load()
    except ValueError:
        raise
    except NotImplementedError as error:
        raise ValueError(f"data set '{name}': {SEAM}; {blame(error)}") from error
    except (Exception, SystemExit) as error:
        if type(dataset).__module__.startswith("runner."):
            raise
        raise ValueError(f"load() of data set '{name}' failed: {blame(error)}") from error
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(_is_split, pair)):
        raise ValueError(f"data set '{name}': {SEAM}; it returned {_shown(pair)}")
    _declared(dataset, name)
    splits = []
    for part, split in zip(("training", "test"), pair, strict=True):
        place = f"the {part} split of data set '{name}'"
        _inputs(dataset, split, place)
        y = _targets(dataset, split.y, place)
        splits.append(split if y is split.y else split.labelled(y))
    _scale(dataset, *splits, name)
    return tuple(splits)


def _is_split(value) -> bool:
    return all(hasattr(value, part) for part in ("base", "y", "domain", "rows", "select"))


def _shown(value) -> str:
    if isinstance(value, tuple | list):
        return f"{len(value)} values, {', '.join(_shown(item) for item in value[:4])}" if value else "nothing"
    return type(value).__name__ if value is not None else "None"


def _declared(dataset, name: str) -> None:
    """classes, shape and names."""
    missing = [key for key in ("classes", "shape", "mean", "std") if getattr(dataset, key, None) is None]
    if missing:
        raise ValueError(f"data set '{name}': load() must set self.{', self.'.join(missing)}")
    if not isinstance(dataset.classes, int) or isinstance(dataset.classes, bool) or dataset.classes < 1:
        raise ValueError(
            f"data set '{name}': classes={dataset.classes!r} must be how many outputs there are, 1 or more"
        )
    if dataset.task not in ("classes", "multilabel", "regression", "tasks"):
        raise ValueError(f"data set '{name}': task={dataset.task!r} must be classes, multilabel, regression or tasks")
    if (dataset.task == "tasks") != (len(dataset.tasks) > 0):
        raise ValueError(
            f"data set '{name}': tasks={dataset.tasks!r} must name the tasks where task='tasks', and there"
        )
    bounds = dataset.bounds
    if bounds is not None:
        numbers = isinstance(bounds, tuple | list) and len(bounds) == 2
        numbers = numbers and all(isinstance(edge, int | float) and math.isfinite(edge) for edge in bounds)
        if not numbers or not bounds[0] < bounds[1]:
            raise ValueError(f"data set '{name}': bounds={bounds!r} must be (low, high), of all raw inputs, or None")
    if dataset.names is not None and len(dataset.names) != dataset.classes:
        raise ValueError(f"data set '{name}': {len(dataset.names)} names for {dataset.classes} classes")


def _inputs(dataset, split, place: str) -> None:
    base, rows, count = split.base, split.rows, len(split.y) if hasattr(split.y, "__len__") else 0
    if not isinstance(base, Tensor) and not all(hasattr(base, part) for part in ("__len__", "select", "get")):
        raise ValueError(
            f"{place}: x is {type(base).__module__}.{type(base).__name__}; it must be one tensor (N, ...), all samples "
            "of one shape, such as torch.from_numpy(array), or runner.dataset.Images"
        )
    if not isinstance(split.y, Tensor) or split.y.dim() == 0:
        raise ValueError(f"{place}: y is {_shown(split.y)}; it must be a tensor (N, ...), such as torch.tensor(labels)")
    samples = len(base) if rows is None else len(rows)
    if samples != count:
        raise ValueError(f"{place} has {samples} inputs and {count} targets")
    if count == 0:
        raise ValueError(f"{place} is empty")
    if rows is not None and not (int(rows.min()) >= 0 and int(rows.max()) < len(base)):
        raise ValueError(f"{place}: rows {int(rows.min())} to {int(rows.max())} of {len(base)} inputs")
    domain = split.domain
    if domain is not None and (tuple(domain.shape) != (count,) or domain.is_floating_point()):
        raise ValueError(f"{place}: domain must be ({count},) integers, it is {tuple(domain.shape)} {domain.dtype}")
    if not isinstance(base, Tensor):
        _first(dataset, base, place)
        return
    if tuple(base.shape[1:]) != tuple(dataset.shape):
        raise ValueError(f"{place}: inputs are {tuple(base.shape[1:])}, and the data set's shape is {dataset.shape}")
    if not dataset.shape:
        raise ValueError(f"{place}: x is {tuple(base.shape)}; it must be (N, D) or (N, C, H, W)")
    if base.is_complex():
        raise ValueError(f"{place}: x is {base.dtype}; inputs must be real numbers")
    _finite(base, "inputs", place, rows)
    if dataset.bounds is not None and not (base.dtype == torch.uint8 and tuple(dataset.bounds) == (0, 255)):
        low, high = (edge.item() for edge in torch.aminmax(base if rows is None else base[rows]))
        if low < dataset.bounds[0] or high > dataset.bounds[1]:
            raise ValueError(
                f"{place}: inputs go from {low:g} to {high:g}, beyond the declared bounds={dataset.bounds}"
            )


def _first(dataset, images, place: str) -> None:
    """One of the images that are decoded on demand; the others are met when they are asked for."""
    try:
        found = images.get(0, None)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{place}: the first image: {blame(error)}") from error
    if not isinstance(found, Tensor) or tuple(found.shape) != tuple(dataset.shape):
        shown = tuple(found.shape) if isinstance(found, Tensor) else _shown(found)
        raise ValueError(f"{place}: the first image is {shown}, and the data set's shape is {dataset.shape}")


def _finite(values: Tensor, what: str, place: str, rows: Tensor | None = None) -> None:
    """Read once and without a copy where all is well. Rows that the split leaves out may hold anything."""
    if not values.is_floating_point() or values.numel() == 0:
        return
    if all(edge.isfinite() for edge in torch.aminmax(values.detach())):
        return
    bad = ~values.isfinite().flatten(1).all(1) if values.dim() > 1 else ~values.isfinite()
    bad = bad if rows is None else bad[rows]
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"{place}: {int(bad.sum())} of {len(bad)} {what} hold NaN or infinity, the first is row {first}"
        )


def _targets(dataset, y: Tensor, place: str) -> Tensor:
    classes = dataset.classes
    if y.is_complex():
        raise ValueError(f"{place}: targets are {y.dtype}")
    _finite(y, "targets", place)
    if dataset.task in ("classes", "tasks"):
        if tuple(y.shape[1:]) != ((len(dataset.tasks),) if dataset.tasks else tuple(dataset.places)):
            wanted = (
                f"(N, {len(dataset.tasks)}), one class id for each task of a"
                if dataset.tasks
                else f"(N, {', '.join(map(str, dataset.places))}), one class id for each place of a"
                if dataset.places
                else "(N,), one class id for each"
            )
            raise ValueError(f"{place}: labels are {tuple(y.shape)}; they must be {wanted} sample")
        if y.is_floating_point():
            raise ValueError(f"{place}: labels are {y.dtype}, and class ids are integers: y.long()")
        y = y.long()
        wrong = (y < 0) | (y >= classes)
        if dataset.places:
            wrong &= y != -100  # runner.dataset.IGNORE
        if wrong.any():
            row = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"{place}: labels must be in 0..{classes - 1}, and {int(wrong.sum())} of {y.numel()} are not: row "
                f"{row[0]} is {int(y[tuple(row)])}; is this split labelled?"
            )
        if classes > max(MANY, len(y)):
            raise ValueError(
                f"{place}: {classes:,} classes for {len(y):,} samples, and the largest label is {int(y.max()):,}: "
                "number the classes 0, 1, 2, ..."
            )
        return y
    outputs = (classes,) if dataset.task == "multilabel" or y.dim() > 1 or classes > 1 else ()
    if tuple(y.shape[1:]) != outputs:
        expected = f"(N, {classes})" if outputs else "(N,)"
        raise ValueError(f"{place}: targets are {tuple(y.shape)}, and {dataset.task} of {classes} has {expected}")
    if dataset.task == "multilabel" and (y.min() < 0 or y.max() > 1):
        raise ValueError(f"{place}: labels of a multilabel set must be in 0..1, they go from {y.min()} to {y.max()}")
    return y if y.is_floating_point() and y.dtype.itemsize >= 4 else y.float()


def _scale(dataset, train, test, name: str) -> None:
    """mean and std: one number, or one for each channel or column."""
    for key in ("mean", "std"):
        value = getattr(dataset, key)
        if not isinstance(value, Tensor):
            raise ValueError(f"data set '{name}': {key} is {_shown(value)}; it must be a tensor ({dataset.shape[0]},)")
        if value.numel() not in (1, dataset.shape[0]) or value.dim() > 1:
            raise ValueError(
                f"data set '{name}': {key} is {tuple(value.shape)}; inputs of {tuple(dataset.shape)} have "
                f"({dataset.shape[0]},), one for each channel or column"
            )
        if not value.isfinite().all() or (key == "std" and (value < 0).any()):
            raise ValueError(f"data set '{name}': {key} is {value.tolist()}; it must be finite and not negative")
    for column in (dataset.std == 0).flatten().nonzero().flatten().tolist():
        where = column if dataset.std.numel() > 1 else slice(None)
        if not isinstance(train.base, Tensor) or _varies(train, where):
            raise ValueError(
                f"data set '{name}': std of channel or column {column} is 0, and the inputs are not constant"
            )
        if _varies(test, where):
            dataset.notices.append(f"input {column} is constant in training and not in the test split")


def _varies(split, column) -> bool:
    values = split.x[:, column]
    return bool((values != values.flatten()[0]).any())


def absent(dataset) -> list[str]:
    """A line about classes of which the training part has no sample: nothing is learned of them."""
    if dataset.task != "classes" or dataset.places:
        return []
    if dataset.classes == 1:
        return ["there is one class, so every prediction is right"]
    counts = torch.tensor(dataset.class_counts)
    missing = (counts == 0).nonzero().flatten().tolist()
    if not missing:
        return []
    shown = ", ".join(str(dataset.names[label]) if dataset.names else str(label) for label in missing[:5])
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    tested = int((counts[dataset.test.y] == 0).sum())
    also = f"; {tested} of the {len(dataset.test)} test samples are of them" if tested else ""
    return [f"{len(missing)} of {dataset.classes} classes have no training sample: {shown}{more}{also}"]
