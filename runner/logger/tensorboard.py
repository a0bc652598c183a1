"""TensorBoard."""

import json
from pathlib import Path

from runner.logger import Logger


def fenced(text: str) -> str:
    return f"```\n{text}\n```"


class TensorBoard(Logger):
    """Metrics as scalars over steps, the resolved config and the result as text, in `<run folder>/tensorboard`.

    Look at them with `tensorboard --logdir outputs`. When a run is resumed or exported again, TensorBoard hides the
    points that are written a second time.
    """

    def start(self, folder: Path, run_id: str, config: dict, resumed: bool) -> None:
        from omegaconf import OmegaConf
        from torch.utils.tensorboard import SummaryWriter

        self.config = OmegaConf.to_yaml(OmegaConf.create(config))
        self.writer, self.step = None, 0

        def opened(step: int) -> SummaryWriter:
            return SummaryWriter(str(folder / "tensorboard"), purge_step=step if resumed else None)

        self.opened = opened

    def log(self, record: dict) -> None:
        self.step = record["step"]
        if self.writer is None:  # not before the first record: its step tells what an earlier session wrote too much
            self.writer = self.opened(self.step)
            self.writer.add_text("config", fenced(self.config), self.step)
        for key, value in record.items():
            if key != "step":
                self.writer.add_scalar(key, value, self.step)
        self.writer.flush()

    def finish(self, status: str, result: dict | None) -> None:
        if self.writer is None:
            return
        if result is not None:
            self.writer.add_text("result", fenced(json.dumps(result, indent=2)), self.step)
        self.writer.close()
