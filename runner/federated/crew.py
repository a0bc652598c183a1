"""Clients side by side, as replicas."""

import numpy as np
import torch
from torch import Tensor

from runner.core.batch import Batch
from runner.engine.replicas import Replicas, twin


class Crew(Replicas):
    """K rows on which clients are trained side by side; see `runner.federated.clients.Clients.together`."""

    def __init__(self, clients, count: int):
        run = clients.run
        super().__init__([twin(run, clients.hooks) for _ in range(count)], loader=run.loader)
        self.fresh = {key: value for key, value in self.optimizer.param_groups[0].items() if key != "params"}
        self.rest = [self.values[name] for name, _ in self.parts.named_buffers()]  # nothing here remembers samples

    def begin(self, start: Tensor, buffers: list[Tensor]) -> None:
        self.weights.data.copy_(start)
        for own, value in zip(self.rest, buffers, strict=True):
            own.copy_(value)
        self.optimizer.state.clear()
        self.optimizer.param_groups[0].update(self.fresh)
        self.loss_sum.zero_(), self.correct.zero_()
        self.seen = np.zeros(len(self.members), dtype=int)
        self.well = torch.ones(len(self.members), dtype=torch.bool, device=self.device)
        self.model.train()

    def advance(self, batch: Batch, factors: np.ndarray, real: np.ndarray) -> None:
        """One step. factors : of every client's learning rate. real : samples that count, 0 for a client at its end."""
        self.factor = factors[0].item() if (factors == factors[0]).all() else torch.from_numpy(factors).to(self.device)
        self.real = real
        self.step(batch)

    def set_lr(self) -> None:
        self.optimizer.param_groups[0]["lr"] = self.base_lrs[0] * self.factor

    def look(self, batch: Batch | None = None) -> None:
        self.recent.clear()

    def take(self, first, batch: Batch, samples: int) -> None:
        real = torch.from_numpy(self.real).to(self.device)
        self.seen += self.real
        self.well &= torch.isfinite(first.loss) | (real == 0)
        self.loss_sum += torch.where(real > 0, first.loss * real, 0.0)
        if self.dataset.task == "classes":
            target = batch.y if batch.y.dim() == 2 else batch.y.argmax(-1)
            right = first.out.logits.argmax(-1) == target
            if batch.mask is not None:
                right &= batch.mask
            self.correct += right.sum(-1) * (real > 0)
