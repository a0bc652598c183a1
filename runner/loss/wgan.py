"""Wasserstein generative adversarial networks."""

from math import prod

import torch
from torch import Tensor, nn

from runner.augment import Draw
from runner.core import distributed
from runner.core.batch import Batch, Output
from runner.core.precision import wide
from runner.core.schema import Count, NonNegative, Positive
from runner.loss import Loss
from runner.optim import given


class WGAN(Loss):
    """The Wasserstein GAN (Arjovsky, Chintala & Bottou, ICML 2017, arXiv:1701.07875): the model makes inputs G(z) of
    noise z ~ N(0, I), in the shape of an input, and a critic D, which the loss owns, tells them from true ones. They
    step in turn, the critic `critic_turns` times and then the model once:

        critic   D(G(z)) - D(x) + penalty (|grad_u D(u)| - 1)^2      u = e x + (1 - e) G(z), e uniform in [0, 1]
        model    -D(G(z))

    and after each of its steps the critic's weights are clamped to [-clip, clip] (algorithm 1 there). Instead of that
    the penalty (Gulrajani et al., NeurIPS 2017, arXiv:1704.00028, algorithm 1) is what loss=wgan_gp has. D is a
    perceptron with ReLUs, of the data set's normalised inputs, which the papers leave open, in fp32 whatever the
    precision; labels are not looked at. z and e are drawn once a step.

    Of a split is measured `energy`, the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely & Rizzo 2013) of as
    many samples, at most 2,000, made of the same noise every time, from it in normalised units; `gap`, the mean of D on
    it less that on samples; and what the data set says of them (`Dataset.judge`).

    Parameters
    ----------
    critic_turns : default 5, of both papers.
    clip : None: no clamping. Default 0.01, the paper's. penalty : default 0; of Gulrajani et al. 10.
    hidden : widths of the critic's hidden layers. Default [128, 128, 128].
    """

    tasks = ("classes", "multilabel", "regression")
    predicts = False

    def __init__(
        self,
        shape: tuple[int, ...],
        critic_turns: Count = 5,
        clip: Positive | None = 0.01,
        penalty: NonNegative = 0.0,
        hidden: list[Count] = [128, 128, 128],  # noqa: B006 (only read)
    ):
        super().__init__()
        widths = [prod(shape), *hidden]
        layers = [part for pair in zip(widths, widths[1:]) for part in (nn.Linear(*pair), nn.ReLU())]
        self.critic = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
        self.turns = {"critic": critic_turns, "model": 1}
        self.clip, self.penalty = clip, penalty

    def draw(self, batch: Batch, draw: Draw) -> Batch:
        z = draw.normal("wgan z", batch.x[0].numel()).to(batch.x)
        return batch.put(z=z, mix=draw.uniform("wgan mix")[:, :1].to(batch.x))

    def judged(self, x: Tensor) -> Tensor:
        """D, (B,)."""
        return self.critic(wide(x)).squeeze(-1)

    def ask(self, net, batch: Batch) -> Output:
        out = net(batch.more["z"].view_as(batch.x))
        if out.logits.shape[-1] != batch.more["z"].shape[-1]:
            raise ValueError("wgan wants as many outputs as an input has numbers, as model=mlp_generator has")
        if self.turn == "model":
            return Output(out.logits, out.features, {"fake": self.judged(out.logits)})
        fake, real = out.logits.detach(), batch.x.flatten(1)
        more = {"fake": self.judged(fake), "real": self.judged(real)}
        if given(self.penalty):
            mixed = batch.more["mix"] * real + (1 - batch.more["mix"]) * fake
            slope = torch.func.grad(lambda u: self.judged(u).sum())(wide(mixed))
            more["steep"] = slope.norm(dim=-1)
        return Output(fake, out.features, more)

    def forward(self, out: Output, batch: Batch) -> Tensor:
        if self.turn == "model":
            return -out.more["fake"]
        value = out.more["fake"] - out.more["real"]
        return value + self.penalty * (out.more["steep"] - 1).square() if "steep" in out.more else value

    def project(self) -> None:
        if self.turn == "critic" and self.clip is not None:
            for parameter in self.critic.parameters():
                parameter.clamp_(-self.clip, self.clip)

    def evaluate(self, run, split) -> dict[str, float | None]:
        run.model.eval()
        made, true, gap = [], [], torch.zeros(2, dtype=torch.float64, device=run.device)
        for batch in run.loader.evaluate(split, run.train.eval_batch_size):
            fake = self.sample(run.outputs, batch, Draw(0, 0, 0, batch.index))
            gap += torch.stack([self.judged(x.flatten(1)).double().sum() for x in (batch.x, fake)])
            made.append(fake.float()), true.append(batch.x.float())
        run.model.train()
        made, true = torch.cat(made), torch.cat(true)
        if distributed.world > 1:
            parts = distributed.all_of((made.cpu(), true.cpu()))
            made, true = (torch.cat(part) for part in zip(*parts, strict=True))
        real, fake = (distributed.sum_(gap) / len(true)).tolist()
        raw = made / run.loader.scale.to(made) + run.loader.mean.to(made)
        return {"energy": energy(made[:2000], true[:2000]), "gap": real - fake, **run.dataset.judge(raw)}

    def sample(self, net, like: Batch, draw: Draw) -> Tensor:
        return net(draw.normal("wgan z", like.x[0].numel()).to(like.x).view_as(like.x)).logits.view_as(like.x)


def energy(a: Tensor, b: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of samples (N, ..) and (M, ..), by all pairs of different ones: unbiased."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    own = sum(torch.cdist(x, x).sum() / (len(x) * max(len(x) - 1, 1)) for x in (a, b))
    return (2 * torch.cdist(a, b).mean() - own).item()
