"""Denoising diffusion."""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from runner.augment import Draw
from runner.core import distributed
from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import Count, Positive, When
from runner.loss import Loss


class Diffusion(Loss):
    """Denoising diffusion (Ho, Jain & Abbeel, NeurIPS 2020, arXiv:2006.11239), that predicts the noise:

        x_t = sqrt(a_t) x + sqrt(1 - a_t) e,   e ~ N(0, I),   t uniform in 1 .. T,   a_t = product of (1 - b_s), s <= t
        l = w_t |e_hat(x_t, t) - e|^2 / D

    weighting=none is the paper's simple loss, w_t = 1 (equation 14). weighting=min_snr (Hang et al., ICCV 2023,
    arXiv:2303.09556) has w_t = min(SNR_t, gamma) / SNR_t with SNR_t = a_t / (1 - a_t): of the error of x, which is that
    of e over SNR_t, at most gamma. x is the data set's normalised input, its last axis of targets is not looked at.

    A sample's e and t are drawn once a step, so all passes of the step have the same. What is measured of a split is
    `mse`, the loss without weights, with noise of its own that is the same at any time. `sample` runs the paper's
    algorithm 2 with sigma_t^2 = b_t.

    Parameters
    ----------
    steps : T. Default 1000. schedule : of b. linear: from 1e-4 to 0.02, scaled by 1000 / T (the paper's at T = 1000);
        cosine: a_t = f(t) / f(0), f(t) = cos^2(pi / 2 (t / T + s) / (1 + s)), s = 0.008, b_t at most 0.999 (Nichol &
        Dhariwal, ICML 2021, arXiv:2102.09672). Default linear.
    weighting : default none. gamma : default 5, the paper's. It acts with min_snr alone.

    The model takes t as `t` (B,), in (0, 1], and its logits are D, as many as an input has numbers.
    """

    tasks = ("classes", "multilabel", "regression")
    predicts = False
    needs = ("t",)

    def __init__(
        self,
        steps: Count = 1000,
        schedule: Literal["linear", "cosine"] = "linear",
        weighting: Literal["none", "min_snr"] = "none",
        gamma: Annotated[Positive, When("weighting", "min_snr")] = 5.0,
    ):
        super().__init__()
        self.steps, self.weighting, self.gamma = steps, weighting, gamma
        if schedule == "linear":
            b = (torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * 1000 / steps).clamp(max=0.999)
        else:
            f = (math.pi / 2 * (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008).cos().square()
            b = (1 - f[1:] / f[:-1]).clamp(max=0.999)
        self.register_buffer("b", b, persistent=False)
        self.register_buffer("a", (1 - b).cumprod(0), persistent=False)

    def draw(self, batch: Batch, draw: Draw) -> Batch:
        step = (draw.uniform("diffusion t")[:, 0].double() * self.steps).long()
        noise = draw.normal("diffusion noise", batch.x[0].numel()).to(batch.x)
        return batch.put(step=step, noise=noise)

    def ask(self, net, batch: Batch) -> Output:
        x, step = batch.x.flatten(1), batch.more["step"]
        a = self.a[step].unsqueeze(1)
        noisy = a.sqrt().to(x.dtype) * x + (1 - a).sqrt().to(x.dtype) * batch.more["noise"]
        return net(noisy.view_as(batch.x), t=self._time(step, x))

    def _time(self, step: Tensor, x: Tensor) -> Tensor:
        return ((step + 1) / self.steps).to(x.dtype)

    def forward(self, out: Output, batch: Batch) -> Tensor:
        error = (wide(out.logits) - wide(batch.more["noise"])).square().mean(1)
        if self.weighting == "none":
            return error
        a = self.a[batch.more["step"]]
        snr = a / (1 - a)
        return (snr.clamp(max=self.gamma) / snr).to(error.dtype) * error

    def evaluate(self, run, split) -> dict[str, float | None]:
        run.model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=run.device)
        for batch in run.loader.evaluate(split, run.train.eval_batch_size):
            batch = self.draw(batch, Draw(0, 0, 0, batch.index))
            error = wide(self.ask(run.outputs, batch).logits) - wide(batch.more["noise"])
            total += torch.stack([error.square().mean(1).double().sum(), total.new_tensor(len(batch))])
        run.model.train()
        error, count = distributed.sum_(total).tolist()
        return {"mse": error / count}

    def sample(self, net, like: Batch, draw: Draw) -> Tensor:
        x, count = draw.normal("diffusion start", like.x[0].numel()).to(like.x), len(like)
        for step in range(self.steps - 1, -1, -1):
            b, a = self.b[step].item(), self.a[step].item()
            t = self._time(torch.full((count,), step, device=x.device), x)
            noise = wide(net(x.view_as(like.x), t=t).logits)
            x = (x - b / math.sqrt(1 - a) * noise) / math.sqrt(1 - b)
            if step:
                x = x + math.sqrt(b) * draw.normal(f"diffusion step {step}", x.shape[1]).to(x)
        return x.view_as(like.x)
