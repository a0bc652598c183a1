"""A table of one's own: a CSV or parquet file with named columns of numbers and categories."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from runner.dataset import Dataset, Split, fixed_test, statistics
from runner.dataset.labels import class_ids


class TableFile(Dataset):
    """Inputs (D,) float32: numbers as they are, True and False as 1 and 0, and for a column of words one input for
    each word that training has, 1 where it is that (a word that only test has: all 0).

    Parameters
    ----------
    path : the file, .csv, .tsv or .parquet; relative to where the command is given.
    target : name of the column that is to be predicted.
    columns : names of the inputs. Default None: all others.
    task : classes, numbered in the order of their values or words, or regression; a regression target is standardised
        by mean and deviation of training, which are in `record`.
    test_path : the file of the test split. Default None: a fixed fifth of every class, or of every tenth of the samples
        in the order of their target.

    Raises
    ------
    ValueError
        No such file or column, a value that is missing, or a column of something else.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        target: str | None = None,
        columns: list[str] | None = None,
        task: Literal["classes", "regression"] = "classes",
        test_path: str | None = None,
        **settings,
    ):
        self.task = task
        super().__init__(**settings)
        self.path, self.target, self.columns, self.test_path = path, target, columns, test_path
        self.name = "table" if path is None else Path(path).stem

    def load(self) -> tuple[Split, Split]:
        if self.path is None or self.target is None:
            key = "path" if self.path is None else "target"
            raise ValueError(f"dataset.{key} is not given: dataset.path=my.csv dataset.target=price")
        tables = [_read(path) for path in (self.path, self.test_path) if path is not None]
        wanted = self.columns or [name for name in tables[0] if name != self.target]
        for path, table in zip((self.path, self.test_path), tables, strict=False):
            if lacking := [name for name in (self.target, *wanted) if name not in table]:
                raise ValueError(f"{path} has no column '{lacking[0]}' but {', '.join(table)}")
            for name in (self.target, *wanted):
                if (row := next((i for i, value in enumerate(table[name]) if value is None), None)) is not None:
                    raise ValueError(f"{path}: column '{name}' has no value in row {row + 1}; fill it or leave it out")
        y, self.classes, self.names = self._targets([table[self.target] for table in tables])
        if len(tables) == 2:
            sizes = [len(table[self.target]) for table in tables]
            kept, held = torch.arange(sizes[0]), torch.arange(sizes[0], sum(sizes))
        else:
            strata = y if self.task == "classes" else y.argsort(stable=True).argsort() * 10 // len(y)
            kept, held = fixed_test(strata, "table test")
        values = {name: [value for table in tables for value in table[name]] for name in wanted}
        parts = {name: _inputs(name, column, kept.tolist(), self.path) for name, column in values.items()}
        x = torch.cat([part for part, _ in parts.values()], 1)
        self.inputs = [label for _, labels in parts.values() for label in labels]
        self.shape, (self.mean, self.std) = tuple(x.shape[1:]), statistics(x[kept])
        if self.task == "regression":
            self.scale = {"mean": y[kept].mean().item(), "std": y[kept].std(correction=0).item() or 1.0}
            y = ((y - self.scale["mean"]) / self.scale["std"]).float()
        whole = Split(x, y)
        return whole.select(kept), whole.select(held)

    def prepare(self) -> None:
        super().prepare()
        self.record |= {"inputs": self.inputs} | ({"target": self.scale} if self.task == "regression" else {})

    def _targets(self, columns: list[list]) -> tuple[Tensor, int, list[str] | None]:
        values = [value for column in columns for value in column]
        if self.task == "regression":
            if not all(isinstance(value, int | float) for value in values):
                raise ValueError(f"{self.path}: dataset.task=regression, and column '{self.target}' is not of numbers")
            return torch.tensor(values, dtype=torch.float64), 1, [self.target]
        if all(isinstance(value, float) and value.is_integer() for value in values):
            values = [int(value) for value in values]
        found = class_ids({"all": values}, {"all": None}, f"column '{self.target}'", self.path)
        return found.targets["all"], found.meta["classes"], found.meta["names"]


def _read(path: str) -> dict[str, list]:
    """Column -> its values, in the order of the file."""
    where = Path(path).expanduser()
    if not where.is_file():
        raise ValueError(f"dataset.path={path}: there is no such file")
    import pyarrow
    from pyarrow import csv, parquet

    try:
        if where.suffix == ".parquet":
            return parquet.read_table(where).to_pydict()
        options = csv.ParseOptions(delimiter="\t" if where.suffix == ".tsv" else ",")
        strings = csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
        return csv.read_csv(where, parse_options=options, convert_options=strings).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"dataset.path={path}: cannot be read: {' '.join(str(error).split())}") from error


def _inputs(name: str, values: list[Any], train: list[int], path: str) -> tuple[Tensor, list[str]]:
    """(N, k) float32 of a column, and what the k are called."""
    if all(isinstance(value, int | float) for value in values):
        return torch.tensor(values, dtype=torch.float64).float()[:, None], [name]
    if all(isinstance(value, str) for value in values):
        words = sorted({values[row] for row in train})
        number = {word: k for k, word in enumerate(words)}
        found = torch.zeros(len(values), len(words))
        for row, value in enumerate(values):
            if value in number:
                found[row, number[value]] = 1
        return found, [f"{name}={word}" for word in words]
    kinds = ", ".join(sorted({type(value).__name__ for value in values}))
    raise ValueError(f"{path}: column '{name}' holds {kinds}: inputs are numbers or words; see dataset.columns")
