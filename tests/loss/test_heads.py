"""Losses with heads of their own: points worked out by hand, the margins that are drawn, and whole runs."""

from math import acos, cos, exp, log

import numpy as np
import pytest
import torch

from runner.core.batch import Batch, Output
from runner.core.dropout import Masks
from runner.loss.adaface import AdaFace
from runner.loss.elasticface import ElasticFace
from runner.loss.legendretron import LegendreTron
from tests.tiny import SMALL, trainer

HEADS = ["adaface", "elasticface", "elasticface_cos"]


def value(loss, cosines, y, features=None):
    logits = loss.s * torch.as_tensor(cosines, dtype=torch.float64)
    features = torch.ones(len(logits), 2, dtype=torch.float64) if features is None else features
    return loss(Output(logits, features), Batch(features, y, torch.arange(len(y))))


# ---- AdaFace


def test_adaface_by_hand():
    """Norms 1, 3, 5: mean 3, std 2 (divided by N - 1). With t_alpha = 1, h = 1/2 and s = 1, k = -1/2, 0, 1/2 (but for
    std + 1e-3); cosines 0.6 with class 0 and 0 with class 1, m = 0.4."""
    loss = AdaFace(0.4, 0.5, 1.0, 1.0, classes=2, features=2)
    features = torch.tensor([[1.0, 0.0], [0.0, 3.0], [3.0, 4.0]], dtype=torch.float64)
    found = value(loss, [[0.6, 0.0]] * 3, torch.tensor([0, 0, 0]), features)
    k = [-1 / 2.001, 0.0, 1 / 2.001]
    own = [cos(acos(0.6) - 0.4 * k_i) - 0.4 * (1 + k_i) for k_i in k]
    np.testing.assert_allclose(found.numpy(), [log(1 + exp(-z)) for z in own], rtol=1e-7)
    assert own[1] == pytest.approx(0.2)  # an average image: CosFace


def test_adaface_of_far_norms_is_arcface_or_nearly_without_a_margin():
    """k = -1: the angle grows by m and nothing is subtracted. k = 1: it shrinks by m and 2 m is subtracted."""
    loss = AdaFace(0.3, 1.0, 1.0, 0.0, classes=2, features=2)
    loss.mean.fill_(10.0), loss.std.fill_(1.0)
    features = torch.tensor([[1e-9, 0.0], [1e9, 0.0]], dtype=torch.float64)
    found = value(loss, [[0.6, 0.0]] * 2, torch.tensor([0, 0]), features)
    own = [cos(acos(0.6) + 0.3), cos(acos(0.6) - 0.3) - 0.6]
    np.testing.assert_allclose(found.numpy(), [log(1 + exp(-z)) for z in own], rtol=1e-7)


def test_one_sample_has_a_finite_loss():
    loss = AdaFace(t_alpha=1.0, classes=2, features=2)
    assert torch.isfinite(value(loss, [[0.5, -0.5]], torch.tensor([0]))).all()


def test_no_gradient_through_the_norm():
    loss = AdaFace(t_alpha=1.0, classes=3, features=4).double()
    features = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    out = loss.head(Output(torch.zeros(6, 3), features))
    losses = loss(out, Batch(features, torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6)))
    (gradient,) = torch.autograd.grad(losses.sum(), features)
    np.testing.assert_allclose((gradient * features).sum(1).detach().numpy(), 0, atol=1e-9)  # angles alone move


# ---- ElasticFace


def elastic(*words):
    run = trainer(*SMALL, "loss=elasticface", *words, double=True)
    return run, torch.linspace(-0.9, 0.9, 40_000, dtype=torch.float64)


def test_margins_are_drawn_from_the_normal_distribution():
    run, own = elastic("loss.m=0.3", "loss.sigma=0.1")
    margins = run.loss._margins(own)
    scores = (margins.numpy() - 0.3) / 0.1
    assert abs(scores.mean()) < 5 / 200  # five standard errors
    assert abs(scores.std() - 1) < 5 / 200 / 2**0.5
    for level, share in ((-1.0, 0.158655), (0.0, 0.5), (0.5, 0.691462), (2.0, 0.977250)):
        assert abs((scores < level).mean() - share) < 5 * (share * (1 - share) / 40_000) ** 0.5
    assert abs(np.corrcoef(margins.numpy(), own.numpy())[0, 1]) < 0.025


def test_margins_are_new_in_every_pass_and_keyed():
    run, own = elastic()
    first, before = run.loss._margins(own), torch.get_rng_state()
    assert torch.equal(run.loss._margins(own), first)
    assert torch.equal(torch.get_rng_state(), before)
    for what in ("step", "forwards"):
        setattr(run.masks, what, getattr(run.masks, what) + 1)
        assert not torch.equal(run.loss._margins(own), first)
        setattr(run.masks, what, getattr(run.masks, what) - 1)
    assert torch.equal(elastic("seed=0")[0].loss._margins(own), first)
    assert not torch.equal(elastic("seed=1")[0].loss._margins(own), first)
    assert run.loss.eval()._margins(own).unique().tolist() == [0.5]


def test_plus_deals_the_same_margins_by_difficulty():
    (plain, own), (plus, _) = elastic(), elastic("loss.plus=true")
    own = own[torch.randperm(len(own))]
    margins = plus.loss._margins(own)
    torch.testing.assert_close(margins.sort().values, plain.loss._margins(own).sort().values)
    assert (margins[own.argsort()].diff() <= 0).all()  # the larger the cosine, the smaller the margin


def test_elasticface_by_hand():
    """cos theta_0 = 1/2, theta_0 = pi/3, and m = pi/6: cos(pi/2) = 0. And the cosine form: 1/2 - 1/4."""
    arc = ElasticFace("arc", np.pi / 6, s=2.0, classes=2, features=2)
    np.testing.assert_allclose(value(arc, [[0.5, 0.5]], torch.tensor([0])).numpy(), [log(1 + exp(1))], rtol=1e-12)
    plain = ElasticFace("cos", 0.25, s=2.0, classes=2, features=2)
    np.testing.assert_allclose(value(plain, [[0.5, 0.5]], torch.tensor([0])).numpy(), [log(1 + exp(0.5))], rtol=1e-12)


@pytest.mark.parametrize("loss", [ElasticFace, AdaFace])
def test_the_gradient_is_finite_where_a_feature_is_its_class_vector(loss):
    loss = loss(classes=2, features=2)
    features = torch.tensor([[3.0, 0.0], [-2.0, 0.0], [0.0, 0.0]], requires_grad=True)
    with torch.no_grad():
        loss.cosines.weight.copy_(torch.tensor([[5.0, 0.0], [0.0, 1.0]]))
    losses = loss(
        loss.head(Output(torch.zeros(3, 2), features)), Batch(features, torch.zeros(3).long(), torch.arange(3))
    )
    gradients = torch.autograd.grad(losses.sum(), [features, loss.cosines.weight])
    assert torch.isfinite(losses).all() and all(torch.isfinite(gradient).all() for gradient in gradients)


# ---- runs


@pytest.mark.parametrize("option", HEADS)
def test_a_run_learns_and_is_measured_by_the_head(option):
    run = trainer(*SMALL, f"loss={option}", "loss.s=16", "optim.lr=0.1")
    untrained = run.evaluate(run.dataset.test)
    for epoch in range(20):
        for batch in run.loader.epoch(epoch):
            run.step(batch)
    assert run.evaluate(run.dataset.test)["accuracy"] > untrained["accuracy"] + 0.3
    # the model's own classifier is where the weight decay has left it
    assert not run.model.head.weight.grad.any()


@pytest.mark.parametrize("option", HEADS)
def test_a_resumed_run_is_the_same_run(option, tmp_path):
    words = [*SMALL, f"loss={option}", "optim=sam"]
    whole, half = (trainer(*words, folder=tmp_path) for _ in range(2))
    batches = list(whole.loader.epoch(0))
    for batch in batches[:4]:
        whole.step(batch)
    for batch in batches[:2]:
        half.step(batch)
    rest = trainer(*words, folder=tmp_path)
    rest.load_state_dict(half.state_dict())
    for batch in batches[2:4]:
        rest.step(batch)
    assert torch.equal(rest.weights.data, whole.weights.data)
    assert all(torch.equal(a, b) for a, b in zip(rest.loss.buffers(), whole.loss.buffers(), strict=True))


def test_masks_reach_the_loss_of_a_run_only():
    run, _ = elastic()
    assert isinstance(run.loss.masks, Masks) and run.loss.masks is run.masks
    assert ElasticFace(classes=2, features=2).masks is None


# ---- LegendreTron


def potential(block, x):
    """The function of one sample whose gradient is the block's, with its matrices, in numpy."""

    def softplus(a):
        return np.logaddexp(0, a)

    (outer, outside), (shift, bias) = map(arrays, (block.outer.parameters(), (block.shift, block.bias)))
    inner, scale, skip = arrays((block.inner.weight, block.scale, block.skip.weight))
    depth, half = len(bias) + 1, bias.shape[1]
    hidden = 2 * half

    def norm(a, shift, scale):
        return (a + shift) * (np.exp(scale) + 0.001)

    z = softplus(outer[:hidden] @ x + outside[:hidden])
    for layer in range(1, depth):
        own, rows = slice(layer * hidden, (layer + 1) * hidden), slice((layer - 1) * half, layer * half)
        across, beside = np.split(outer[own] @ x + outside[own], 2)
        positive = (softplus(inner[rows]) @ z + bias[layer - 1]) / hidden
        z = softplus(np.concatenate([norm(positive + across, shift[layer - 1], scale[rows]), beside]))
    g = norm(softplus(inner[-1]) @ z / hidden + skip[0] @ x, 0, scale[-1])
    return softplus(block.w1.item()) * g + softplus(block.w0.item()) * (x**2).sum() / 2


def arrays(tensors):
    return [tensor.detach().numpy() for tensor in tensors]


def link(depth=4, hidden=4, blocks=1, classes=4):
    loss = LegendreTron(hidden, depth, blocks, classes=classes).double()
    with torch.no_grad():
        for parameter in loss.parameters():  # none at a value that hides it
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64))
    return loss


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_block_is_the_gradient_of_the_convex_network(depth):
    (block,), x = link(depth).blocks, np.random.default_rng(0).normal(size=(5, 3))
    found = block(torch.from_numpy(x)).detach().numpy()
    for row, gradient in zip(x, found, strict=True):
        for axis, step in enumerate(1e-5 * np.eye(3)):
            slope = (potential(block, row + step) - potential(block, row - step)) / 2e-5
            assert gradient[axis] == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_the_network_is_convex():
    for seed in range(5):
        torch.manual_seed(seed)
        (block,) = link().blocks
        jacobian = torch.autograd.functional.jacobian(block, 3 * torch.randn(3, dtype=torch.float64))
        torch.testing.assert_close(jacobian, jacobian.T)
        assert torch.linalg.eigvalsh(jacobian).min() >= torch.nn.functional.softplus(block.w0).item() - 1e-12


def test_the_link_is_softmax_plus_of_the_blocks_in_turn():
    loss, logits = link(blocks=2), torch.randn(6, 4, dtype=torch.float64)
    scores = logits[:, :3] - logits[:, 3:]
    for block in loss.blocks:
        scores = block(scores)
    total = 1 + scores.exp().sum(1, keepdim=True)
    p = torch.cat([scores.exp() / total, 1 / total], 1)
    torch.testing.assert_close(loss.head(Output(logits, logits)).logits, p.log())


def test_with_the_identity_as_its_link_it_is_cross_entropy():
    loss, logits, y = link(), torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 3])
    with torch.no_grad():
        loss.blocks[0].w1.fill_(-1e3)  # softplus 0
        loss.blocks[0].w0.fill_(log(exp(1) - 1))  # softplus 1
    found = loss(loss.head(Output(logits, logits)), Batch(logits, y, torch.arange(6)))
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, y, reduction="none"))


def test_the_link_is_finite_at_the_largest_fp16_logits():
    logits = torch.full((4, 4), -65504.0, dtype=torch.float16).fill_diagonal_(65504.0).requires_grad_()
    loss = LegendreTron(blocks=2, classes=4)
    losses = loss(loss.head(Output(logits, logits)), Batch(logits, torch.zeros(4).long(), torch.arange(4)))
    gradients = torch.autograd.grad(losses.sum(), [logits, *loss.parameters()], allow_unused=True)
    assert torch.isfinite(losses).all() and all(torch.isfinite(g).all() for g in gradients if g is not None)


def test_what_legendretron_refuses():
    with pytest.raises(ValueError, match="must be even"):
        LegendreTron(hidden=3, classes=4)


def test_a_link_is_learned():
    run = trainer(*SMALL, "loss=legendretron", "optim.lr=0.05")
    before = [parameter.clone() for parameter in run.loss.parameters()]
    for epoch in range(15):
        for batch in run.loader.epoch(epoch):
            run.step(batch)
    assert run.evaluate(run.dataset.test)["accuracy"] > 0.6
    moved = [not torch.equal(a, b) for a, b in zip(before, run.loss.parameters(), strict=True)]
    assert sum(moved) == len(moved)


# ---- in a federation, whose smaller batches are filled up where clients are trained side by side


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("ldam", None),
        ("legendretron", None),
        ("adaface", "AdaFace remembers what it has seen"),
        ("elasticface", "ElasticFace draws random numbers"),
        ("anyloss", "AnyLoss does not leave out the samples that fill up a smaller batch"),
        ("aggregate_response", "AggregateResponse does not leave out the samples that fill up a smaller batch"),
    ],
)
def test_which_losses_take_clients_side_by_side(option, why):
    words = [
        "dataset.subset=240",
        "model.hidden=[12]",
        "train.batch_size=16",
        "federated=fedavg",
        "federated.clients=6",
    ]
    words += ["dataset=breast_cancer", "model=mlp", "model.hidden=[12]"] if option == "anyloss" else []
    run = trainer(*words, "federated.partition=dirichlet", f"loss={option}")
    clients = run.hooks.named["federated"].clients
    assert clients.uneven and clients.apart() == why
