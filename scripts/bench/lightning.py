"""The same training in Lightning, bare: no logger, no checkpoints, no progress bar, no callbacks."""

import logging
import math
import warnings
from tempfile import TemporaryDirectory

import torch
from torch.nn import functional as F

from runner.core.measure import measures
from scripts.bench.byhand import Data, network
from scripts.bench.cases import Case, now


class Lightning:
    """Lightning over whole epochs with the same evaluation at their ends, fed as the hand-written loop is."""

    def __init__(self, case: Case, device: str = "cpu"):
        import lightning  # noqa: F401 (before its loggers are silenced)

        for name in logging.root.manager.loggerDict:
            if name.startswith("lightning"):
                logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")  # that the iterables are no DataLoaders with workers
        self.case, self.device, self.data = case, device, Data(case, device)

    def __call__(self) -> float:
        """Seconds from the start of training to its end; Lightning's own set-up before is left out."""
        import lightning

        torch.manual_seed(0)
        module = _module(lightning.LightningModule)(network(self.case), self.case, self.device)
        with TemporaryDirectory() as folder:
            trainer = lightning.Trainer(
                accelerator="gpu" if self.device.startswith("cuda") else "cpu",
                devices=1,
                max_epochs=self.case.epochs,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                default_root_dir=folder,
            )
            trainer.fit(module, self.data, _Tests(self.data))
        assert trainer.global_step == self.case.steps
        return module.seconds


class _Tests:
    def __init__(self, data: Data):
        self.data = data

    def __iter__(self):
        return self.data.tests()

    def __len__(self) -> int:
        return -(-len(self.data.test_x) // 1000)


def _module(base: type) -> type:
    """The module's class, made where Lightning is imported."""

    class Module(base):
        def __init__(self, net: torch.nn.Module, case: Case, device: str):
            super().__init__()
            self.net, self.case, self.where = net, case, device
            self.outs: list = []

        def training_step(self, batch, number):
            x, y = batch
            return F.cross_entropy(self.net(x), y)

        def validation_step(self, batch, number):
            x, y = batch
            self.outs.append((self.net(x), y))

        def on_validation_epoch_end(self):
            logits, y = (torch.cat(parts) for parts in zip(*self.outs, strict=True))
            self.outs.clear()
            measures(logits.float(), y, "classes")

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
            steps = self.case.steps
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 + math.cos(math.pi * t / steps)) / 2)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_train_start(self):
            self.begin = now(self.where)

        def on_train_end(self):
            self.seconds = now(self.where) - self.begin

    return Module
