"""A text as blocks of characters."""

from pathlib import Path
from typing import Literal

import torch

from runner.core.schema import Count
from runner.dataset import Dataset, Split, fingerprint

WHERE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


class Characters(Dataset):
    """The characters of a text, each to be predicted from those before it: inputs (T,) ids, targets (T,) the ids one
    place further. The text is cut into blocks one after another; its last tenth is the test split, as in the code of
    nanoGPT, where it is called val. Ids number the characters of the whole text in their order.

    Looked for as `<data_dir>/<name>/input.txt`. The best epoch is that of the smallest `nll`, in nats a character.

    Parameters
    ----------
    name : folder below data_dir. block : T. Default 64. per : see `Dataset`.

    Raises
    ------
    ValueError
        There is no such file, or it is too short for a block in each split.
    """

    first = "nll"

    def __init__(
        self,
        *,
        name: str,
        block: Count = 64,
        per: Literal["target", "sample"] = "target",
        data_dir: str | None = None,
        **settings,
    ):
        super().__init__(**settings)
        self.name, self.block, self.per = name, block, per
        self.path = Path(data_dir, name, "input.txt").expanduser() if data_dir else None

    @property
    def local(self) -> bool:
        return True  # nobody else is asked

    def load(self) -> tuple[Split, Split]:
        if self.path is None or not self.path.is_file():
            place = "<data_dir>" if self.path is None else self.path.parent.parent
            raise ValueError(
                f"no {place}/{self.name}/input.txt: set data_dir= or RUNNER_DATA to the folder of {self.name}/input.txt"
                + (f", which is at {WHERE}" if self.name == "tinyshakespeare" else "")
            )
        text = self.path.read_text(encoding="utf-8")
        self.names = sorted(set(text))
        number = {character: i for i, character in enumerate(self.names)}
        ids = torch.tensor([number[character] for character in text], dtype=torch.int32)
        self.classes = self.vocabulary = len(self.names)
        self.shape = self.places = (self.block,)
        self.mean, self.std = torch.zeros(1), torch.ones(1)
        self.fingerprint = fingerprint(ids)
        cut = len(ids) * 9 // 10
        return tuple(self._blocks(part) for part in (ids[:cut], ids[cut:]))

    def _blocks(self, ids: torch.Tensor) -> Split:
        count = (len(ids) - 1) // self.block
        if not count:
            raise ValueError(f"{self.path}: {len(ids):,} characters are no block of dataset.block={self.block}")
        x, y = (ids[start : start + count * self.block].view(count, self.block) for start in (0, 1))
        return Split(x, y.long())
