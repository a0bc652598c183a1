"""What a checkpoint's run was trained on, against what this one measures with.

With another seed, data set or damage, `checkpoint=` has weights that were fitted to samples of this run's validation.
"""

from pathlib import Path
from typing import Any

from runner.record.files import read_json

WHICH = ("_target_", "id", "name", "source")  # keys by which a data set says which one it is
# keys of every data set that decide which samples are held out, and which labels those of training have
ROWS = {"val": 0.1, "subset": None, "imbalance": 1.0, "stratify": False}
LABELS = {"noise": "none", "noise_rate": 0.0, "asymmetric": None, "bag_size": 1}


def compare(there: dict[str, Any], folder: Path, here: dict[str, Any], fingerprint: str) -> tuple[dict, list[str]]:
    """Facts for the result, and a line for everything that differs.

    Parameters
    ----------
    there : the config of the checkpoint's run; empty where there is none beside it.
    folder : of the checkpoint.
    here : this run's config. fingerprint : of this run's data.

    Returns
    -------
    `val_held_out`: whether no validation sample was trained on, None where that is not known or nothing is validated;
    `trained_on`: option, seed and data fingerprint, as far as they are known.
    """
    if not isinstance(there.get("dataset"), dict):
        return {"val_held_out": None, "trained_on": None}, [
            f"checkpoint: no config beside it in {folder}, so what it was trained on, and whether validation and test "
            "were held out, cannot be known"
        ]
    a, b = there["dataset"], here["dataset"]
    option, result = there.get("choices", {}).get("dataset"), _result(folder)
    known = result.get("data", {}).get("fingerprint")
    facts = {"trained_on": {"dataset": option, "seed": there.get("seed"), "fingerprint": known}}
    if any(a.get(key) != b.get(key) for key in WHICH):
        lines = [f"checkpoint: trained on another data set, dataset={option}, which may have samples of this one"]
        return {"val_held_out": None, **facts}, lines
    lines = []
    own = sorted((a.keys() | b.keys()) - {*WHICH, *ROWS, *LABELS, "damage_seed", "split_seed"})
    if other := [key for key in own if a.get(key) != b.get(key)]:
        lines.append(f"checkpoint: trained with {_shown(a, b, other)}")
    held_out = _held_out(there, here)
    if held_out is False:
        differing = [key for key, plain in ROWS.items() if a.get(key, plain) != b.get(key, plain)]
        if a.get("split_seed") != b.get("split_seed"):
            differing.append("split_seed")
        if _drawn(a) and _seed(there) != _seed(here) and a.get("damage_seed") != b.get("damage_seed"):
            differing.append("damage_seed")
        seed = f"seed={there['seed']} (here {here['seed']})" if there["seed"] != here["seed"] else ""
        what = " ".join(filter(None, [seed, _shown(a, b, differing)]))
        lines.append(
            f"checkpoint: validation is not held out: its run was trained with {what}, and so on some or most of the "
            "samples of validation here; the same seed and split keep them apart"
        )
    if held_out and there.get("checkpoint") and (result.get("checkpoint") or {}).get("val_held_out") is not True:
        held_out = (result.get("checkpoint") or {}).get("val_held_out")
        lines.append(
            "checkpoint: its run started from a checkpoint too, whose training "
            + ("had samples of validation here" if held_out is False else "may have had samples of validation here")
        )
    labels = [key for key, plain in LABELS.items() if a.get(key, plain) != b.get(key, plain)]
    if not labels and a.get("noise", "none") != "none" and _seed(there) != _seed(here):
        lines.append("checkpoint: trained with other labels: its noise was drawn with another seed")
    if labels:
        lines.append(f"checkpoint: trained with other labels: {_shown(a, b, labels)}")
    same = not other and there["seed"] == here["seed"] and a.get("damage_seed") == b.get("damage_seed")
    if same and known is not None and known != fingerprint:
        lines.append(
            f"checkpoint: the data has changed since, its fingerprint was {known[:10]} and is {fingerprint[:10]}"
        )
    return {"val_held_out": held_out, **facts}, lines


def _held_out(there: dict, here: dict) -> bool | None:
    """Validation is the first part of an order that the seed draws of the rows that are left: a smaller part is within
    a larger one."""
    a, b = ({**ROWS, **config["dataset"]} for config in (there, here))
    if b["val"] == 0:
        return None
    rows = all(a[key] == b[key] for key in ("subset", "imbalance", "stratify"))
    rows = rows and (not _drawn(a) or _seed(there) == _seed(here))
    return rows and _split(there) == _split(here) and a["val"] >= b["val"]


def _drawn(dataset: dict) -> bool:
    return dataset.get("subset") is not None or dataset.get("imbalance", 1.0) > 1


def _split(config: dict) -> int:
    """The seed of the validation split."""
    own = config["dataset"].get("split_seed")
    return config["seed"] if own is None else own


def _seed(config: dict) -> int:
    """The seed of the damage."""
    own = config["dataset"].get("damage_seed")
    return config["seed"] if own is None else own


def _shown(there: dict, here: dict, keys: list[str]) -> str:
    plain = ROWS | LABELS
    values = ((key, *(_value(node.get(key, plain.get(key))) for node in (there, here))) for key in keys)
    return ", ".join(f"dataset.{key}={a} (here {b})" for key, a, b in values)


def _value(value) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 30 else f"{text[:27]}..."


def _result(folder: Path) -> dict:
    try:
        found = read_json(folder / "result.json")
    except (OSError, ValueError):  # it is not this run's to report
        return {}
    return found if isinstance(found, dict) else {}
