"""What a sweeper that searches (`hydra/sweeper=optuna` and its kin) is told of a run: one number, best small."""

from pathlib import Path

from runner.core.mistake import ConfigError
from runner.record.files import finished, read_json


class Failed(Exception):
    """A run of a search came to nothing; one line."""


def objective(folder: Path) -> float:
    """The error on the validation split at the last epoch, by the first of its measures: 1 - accuracy of classes and of
    several labels, the mean absolute error of a regression, what a loss measures itself. It is an error and not an
    accuracy because all of Hydra's sweepers minimise unless told otherwise.

    Raises Failed where the run is not done or has no such measure.
    """
    from runner.core.measure import rises  # needs torch

    result = finished(folder)
    if result is None:
        failed = read_json(folder / "failed.json")
        why = (
            f"{failed['type']}: {failed['message'].partition(chr(10))[0]}"
            if failed
            else "so there is nothing to search by"
        )
        raise Failed(f"{folder}: not done, {why}")
    last = result.get("last") or {}
    first = next((key for key in last if key.startswith("val_")), None)
    if first is None or last[first] is None:
        raise Failed(f"{folder}: it has no measure of the validation split, by which a sweeper searches")
    return 1 - last[first] if rises(first) else last[first]


def searchable(config: dict) -> None:
    """Raises ConfigError where a search would have to choose by the test set."""
    if config["dataset"].get("val", True) == 0:
        raise ConfigError("dataset.val=0: a sweeper that searches does so by the error on the validation split")


def searches(sweeper: dict) -> bool:
    """Whether Hydra's node is of another sweeper than ours, which ends with a table and asks for no number."""
    return not str(sweeper.get("_target_", "")).endswith("runner.Checked")


def best(place: Path) -> str:
    """What a search has found, where its sweeper has left that in the usual file; empty where it has not."""
    from omegaconf import OmegaConf

    path = place / "optimization_results.yaml"
    if not path.exists():
        return ""
    found = OmegaConf.to_container(OmegaConf.load(path))
    chosen = found.get("best_params") or found.get("best_evaluated_params")
    if not isinstance(chosen, dict) or found.get("best_value") is None:
        return f"the search's results: {path}"
    words = " ".join(f"{key}={value}" for key, value in chosen.items())
    return f"the smallest error on validation: {float(found['best_value']):.4g} with {words}  ({path})"
