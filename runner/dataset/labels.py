"""Class ids of a column of labels, whatever numbers or words it holds."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Labels:
    """targets : split -> (N,) int64 in 0..C-1. meta : `classes`, `names` of the classes where known, and `ids`, the
    integers that stand for the classes in the column, in their order, where these are not 0..C-1, else None."""

    targets: dict[str, Tensor]
    meta: dict


def class_ids(labels: dict[str, list], declared: dict[str, list[str] | None], column: str, place: str) -> Labels:
    """The classes are those that the column declares by name; else the words or integers in it, in their order.

    So words are numbered by the alphabet, the ids 10, 20, 30 are 0, 1, 2, and 0..C-1 stay what they are. A class is
    one wherever it occurs, be it in one split alone. What a column declares counts, with samples or without.

    Parameters
    ----------
    labels : split -> one value for each sample.
    declared : split -> the names of the classes, or None.
    column, place : what messages call the column and the data set.

    Raises
    ------
    ValueError
        A value that is no class: missing, a fraction, negative, beyond what is declared; or the splits declare
        different classes.
    """
    given = {split: names for split, names in declared.items() if names}
    names = next(iter(given.values()), None)
    for split, others in given.items():
        if others != names:
            raise ValueError(f"{place}: split '{split}' declares other classes, or another order, than the first")
    known = {type(value) for values in labels.values() for value in values}
    if known != {str} and not known <= {int, bool}:
        kinds = ", ".join(sorted("nothing" if kind is type(None) else kind.__name__ for kind in known))
        raise ValueError(f"{column} of {place} holds {kinds}, not one class id or name per image: set dataset.label")
    found = sorted({value for values in labels.values() for value in values})
    if known == {str}:
        names, order, ids = found, {name: i for i, name in enumerate(found)}, None
    else:
        for split, values in labels.items():
            _in_range(values, len(names) if names else None, f"split '{split}' of {place}")
        holes = names is None and found != list(range(len(found)))
        order = {value: i for i, value in enumerate(found)} if holes else {value: int(value) for value in found}
        ids = [int(value) for value in found] if holes else None
        names = [str(value) for value in ids] if holes else names
    targets = {
        split: torch.tensor([order[value] for value in values], dtype=torch.int64) for split, values in labels.items()
    }
    return Labels(targets, {"classes": len(names) if names else len(found), "names": names, "ids": ids})


def _in_range(values: list[int], classes: int | None, place: str) -> None:
    wrong = [i for i, value in enumerate(values) if value < 0 or (classes is not None and value >= classes)]
    if wrong:
        expected = "not negative" if classes is None else f"in 0..{classes - 1}, of which it declares the names"
        raise ValueError(
            f"{place}: labels must be {expected}, and {len(wrong)} of {len(values)} are not: row {wrong[0]} is "
            f"{values[wrong[0]]}; is this split labelled?"
        )
