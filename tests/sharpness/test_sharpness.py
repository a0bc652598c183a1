"""The contract of the sharpness seam over every option, and each method against a numpy transcription."""

import copy

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from runner.command.build import build, parameters
from runner.command.listing import conf_dir, options
from runner.core.batch import Batch
from runner.core.precision import LossScale, Overflow
from runner.core.weights import Weights
from runner.engine.trainer import Closure
from tests.tiny import SLIM, SMALL, trainer

NAMES = list(options("sharpness", [conf_dir()]))
# the parameter whose zero is the plain gradient
RADIUS = {
    "sam": "rho",
    "sam_long_tail": "rho",
    "asam": "rho",
    "gradient_regularization": "gamma",
    "robust_weight_perturbation": "gamma",
}
# untrained, ten classes have losses of about 2.3; and a few passes will do
NEEDS = {"robust_weight_perturbation": ["sharpness.threshold=9", "sharpness.steps=2"]}


def node(name: str) -> dict:
    return yaml.safe_load((conf_dir() / "sharpness" / f"{name}.yaml").read_text())


def some_batch(run, size: int = 32, start: int = 0) -> Batch:
    batch = next(run.loader.epoch(0, 0))
    batch = batch.select(slice(start, start + size))
    batch.total = len(batch)
    return batch


def gradient_of(run, batch: Batch) -> torch.Tensor:
    run.gradient(batch, note=False)
    return run.weights.grad.clone()


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_bit_for_bit_and_the_pass_is_the_one_at_w(name):
    run = trainer(*SMALL, f"sharpness={name}")
    batch = some_batch(run)
    before = run.weights.clone()
    first = run.sharpness(Closure(run, batch, alone=False), run.weights)
    assert torch.equal(run.weights.data, before)
    plain = Closure(run, batch, alone=False)()
    assert torch.equal(first.loss, plain.loss)
    assert torch.equal(first.out.logits, plain.out.logits)


@pytest.mark.parametrize("name", [name for name in NAMES if name in RADIUS])
def test_a_vanishing_radius_gives_the_plain_gradient(name):
    batch = None
    grads = []
    for chosen in ([f"sharpness={name}", f"sharpness.{RADIUS[name]}=1e-9"], ["sharpness=none"], [f"sharpness={name}"]):
        run = trainer(*SMALL, *chosen, *(NEEDS.get(name, []) if "none" not in chosen[0] else []), double=True)
        batch = batch or some_batch(run)
        grads.append(gradient_of(run, batch))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=1e-9)
    assert (grads[2] - grads[1]).norm() > 1e-3 * grads[1].norm()  # and a real radius does something


def test_every_radius_is_listed():
    for name in NAMES:
        assert name in RADIUS or name == "none", f"tell this test which parameter of {name} is its radius"


@pytest.mark.parametrize("name", NAMES)
def test_running_statistics_equal_those_of_one_pass(name):
    words = [[f"sharpness={name}", *NEEDS.get(name, [])], ["sharpness=none"]]
    runs = [trainer(*SMALL[:-1], "model=resnet20", *own) for own in words]
    batch = some_batch(runs[0], 8)
    for run in runs:
        run.gradient(batch)
    for (key, a), (_, b) in zip(runs[0].model.named_buffers(), runs[1].model.named_buffers(), strict=True):
        assert torch.equal(a, b), key
    assert all(norm.track_running_stats for norm in runs[0].norms)
    assert len(runs[0].norms) == 19


def grad_fn(w: np.ndarray) -> np.ndarray:
    """Gradient of sum_i (w_i^4 / 4 + i * w_i^2)."""
    return w**3 + 2 * np.arange(len(w)) * w


class Quartic:
    """A closure on a function whose gradient numpy can write."""

    def __init__(self, weights: Weights):
        self.weights, self.at = weights, []

    def __call__(self, mask=None, create_graph=False):
        w = np.concatenate([p.detach().numpy().ravel() for p in self.weights.parameters])
        self.at.append(w)
        g, start = grad_fn(w), 0
        for _, view in self.weights.views(self.weights.grad):
            view.copy_(torch.tensor(g[start : start + view.numel()]).view_as(view))
            start += view.numel()


def reference_sam(w, rho):
    g = grad_fn(w)
    return grad_fn(w + rho * g / (np.sqrt((g**2).sum()) + 1e-12))


def reference_asam(w, rho, eta):
    """Names are 'weight' (the first six) and 'bias'."""
    g = grad_fn(w)
    t = np.array([abs(w[i]) + eta if i < 6 else 1.0 for i in range(len(w))])
    tg = t * g
    return grad_fn(w + rho * t * tg / (np.sqrt((tg**2).sum()) + 1e-16))


def reference_gradient_regularization(w, gamma, epsilon, form):
    g = grad_fn(w)
    if form == "forward":
        return g + gamma * (grad_fn(w + epsilon * g) - g) / epsilon
    return g + gamma * (g - grad_fn(w - epsilon * g)) / epsilon


@pytest.mark.parametrize(
    ("name", "settings", "reference"),
    [
        ("sam", {"rho": 0.05}, reference_sam),
        ("sam", {"rho": 2.0}, reference_sam),
        ("asam", {"rho": 0.5, "eta": 0.01}, reference_asam),
        ("asam", {"rho": 2.0, "eta": 0.0}, reference_asam),
        *[
            ("gradient_regularization", dict(gamma=gamma, epsilon=0.05, form=form), reference_gradient_regularization)
            for gamma in (0.0, 0.02, 0.05, 3.0)
            for form in ("forward", "backward")
        ],
    ],
)
def test_gradient_equals_the_numpy_transcription(name, settings, reference):
    layer = nn.Linear(3, 2).double()
    weights = Weights(layer)
    w = np.concatenate([p.detach().numpy().ravel() for p in weights.parameters]).copy()
    build(node(name) | settings, "sharpness")(Quartic(weights), weights)
    found = np.concatenate([view.numpy().ravel() for _, view in weights.views(weights.grad)])
    np.testing.assert_allclose(found, reference(w, **settings), rtol=1e-12)


def flat_gradient(method) -> tuple[np.ndarray, np.ndarray]:
    """(w, the method's gradient there) on the quartic."""
    torch.manual_seed(0)
    weights = Weights(nn.Linear(3, 2).double())
    w = np.concatenate([p.detach().numpy().ravel() for p in weights.parameters]).copy()
    method(Quartic(weights), weights)
    return w, np.concatenate([view.numpy().ravel() for _, view in weights.views(weights.grad)])


def test_gradient_regularization_contains_sam_with_an_ascent_that_is_not_normalised():
    settings = {"gamma": 0.05, "epsilon": 0.05}
    w, found = flat_gradient(build(node("gradient_regularization") | settings, "sharpness"))
    np.testing.assert_allclose(found, grad_fn(w + 0.05 * grad_fn(w)), rtol=1e-14)
    rho = 0.05 * np.sqrt((grad_fn(w) ** 2).sum())  # SAM's radius of the same length
    np.testing.assert_allclose(flat_gradient(build(node("sam") | {"rho": rho}, "sharpness"))[1], found, rtol=1e-10)


@pytest.mark.parametrize("form", ["forward", "backward"])
def test_gradient_regularization_tends_to_the_gradient_of_the_penalised_loss(form):
    """Of L + gamma / 2 * ||grad L||^2: g + gamma * H g, where H is diag(3 w_i^2 + 2 i)."""
    gamma, errors = 0.3, []
    for epsilon in (1e-3, 1e-4):
        settings = {"gamma": gamma, "epsilon": epsilon, "form": form}
        w, found = flat_gradient(build(node("gradient_regularization") | settings, "sharpness"))
        exact = grad_fn(w) + gamma * (3 * w**2 + 2 * np.arange(len(w))) * grad_fn(w)
        errors.append(found - exact)
    assert abs(errors[1]).max() < 1e-3 * abs(exact).max()
    np.testing.assert_allclose(errors[0], 10 * errors[1], rtol=0.1, atol=1e-9)  # of first order in epsilon


@pytest.mark.parametrize("name", NAMES)
def test_accumulation_equals_the_large_batch(name):
    whole, parts = (trainer(*SMALL, f"sharpness={name}", f"train.accumulate={k}", double=True) for k in (1, 3))
    batch = some_batch(whole)
    a, b = gradient_of(whole, batch), gradient_of(parts, batch)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_m_sharpness_is_the_mean_over_groups_each_with_its_own_perturbation():
    run = trainer(*SMALL, "sharpness=sam", "sharpness.m=8", double=True)
    alone = trainer(*SMALL, "sharpness=sam", double=True)
    batch = some_batch(run)
    found = gradient_of(run, batch)
    groups = []
    for start in range(0, 32, 8):
        part = batch.select(slice(start, start + 8))
        part.total = 8
        groups.append(gradient_of(alone, part))
    torch.testing.assert_close(found, torch.stack(groups).mean(0), rtol=1e-10, atol=1e-13)
    assert (found - gradient_of(alone, batch)).norm() > 1e-4 * found.norm()


class FailingClosure(Closure):
    """Gives gradients that are not finite in one pass."""

    fail_at = 0

    def __call__(self, *args, **kwargs):
        if self.passes == self.fail_at:
            self.run.precision.scale.value = 2.0**120
        found = super().__call__(*args, **kwargs)
        self.run.precision.scale.value = 2.0**10
        return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fail_at", [0, 1])
@pytest.mark.parametrize("m", ["null", "16"])
def test_an_fp16_overflow_in_any_pass_changes_nothing(name, fail_at, m, monkeypatch):
    options = [f"sharpness.m={m}"] if "m" in parameters(type(trainer(*SMALL, f"sharpness={name}").sharpness))[0] else []
    run = trainer(
        *SMALL[:-1],
        *SLIM,
        f"sharpness={name}",
        *NEEDS.get(name, []),
        *options,
        "train.precision=fp16",
        "hook=[ema,clip,saf]",
        "schedule=constant",
    )
    run.precision.scale = LossScale(2.0**8)
    seen = []
    monkeypatch.setattr(run.loss, "observe", lambda out, batch: seen.append(len(batch)))
    batch = some_batch(run, 32)
    assert run.step(batch) is not None  # so that the optimizer has a state
    observed = len(seen)

    def state():
        kept = run.state_dict()
        return {key: kept[key] for key in ("model", "optimizer", "hooks", "sums")}, run.weights.clone()

    (before, w), count = state(), run.count
    before = torch.utils._pytree.tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, before)
    monkeypatch.setattr(run, "closure", type("Failing", (FailingClosure,), {"fail_at": fail_at}))
    passes = 1 if name == "none" else 2
    if fail_at >= passes:
        pytest.skip(f"{name} makes one pass")
    scale = run.precision.scale
    assert run.step(batch) is None
    (after, w_after) = state()
    assert torch.equal(w, w_after)
    leaves = zip(torch.utils._pytree.tree_leaves(before), torch.utils._pytree.tree_leaves(after), strict=True)
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in leaves)
    assert len(seen) == observed
    assert scale.skipped == 1
    assert run.count == count + 1


def test_overflow_is_raised_inside_the_restoring_context():
    run = trainer(*SMALL, "sharpness=sam", "train.precision=fp16")
    run.precision.scale = LossScale(2.0**127)
    before = run.weights.clone()
    with pytest.raises(Overflow):
        run.gradient(some_batch(run))
    assert torch.equal(run.weights.data, before)


def test_fp16_agrees_with_fp32():
    a, b = (trainer(*SMALL, "sharpness=sam", f"train.precision={p}") for p in ("fp32", "fp16"))
    batch = some_batch(a)
    x, y = gradient_of(a, batch), gradient_of(b, batch)
    assert (x - y).norm() < 0.01 * x.norm()
    assert not torch.equal(x, y)  # fp16 was really used


def test_closure_mask_is_the_mean_over_the_chosen_samples():
    run = trainer(*SMALL, double=True)
    batch = some_batch(run)
    mask = torch.arange(len(batch)) % 3 == 0
    Closure(run, batch, alone=False)(mask)
    found = run.weights.grad.clone()
    part = batch.select(mask)
    part.total = len(part)
    torch.testing.assert_close(found, gradient_of(run, part), rtol=1e-10, atol=1e-13)


def test_closure_create_graph_differentiates_the_gradient():
    """d/dw of ||g||^2 / 2 is the Hessian times g: central differences of the gradient along g."""
    run = trainer(*SMALL, "train.accumulate=2", "optim.weight_decay=0", double=True)
    batch = some_batch(run)
    first = Closure(run, batch, alone=False)(create_graph=True)
    g = run.weights.grad.clone()
    torch.testing.assert_close(first.grad.detach(), g)
    torch.testing.assert_close(gradient_of(run, batch), g, rtol=1e-10, atol=1e-13)
    first = Closure(run, batch, alone=False)(create_graph=True)
    run.weights.zero_grad()
    (0.5 * run.weights.dot(first.grad, first.grad)).backward()
    found, h = run.weights.grad.clone(), 1e-5
    with run.weights.restored():
        run.weights.add_(g, h)
        up = gradient_of(run, batch)
        run.weights.add_(g, -2 * h)
        down = gradient_of(run, batch)
    torch.testing.assert_close(found, (up - down) / (2 * h), rtol=1e-4, atol=1e-8)


def test_closure_below_keeps_the_value_and_the_gradient_of_the_smaller_losses():
    run = trainer(*SMALL, "train.accumulate=2", double=True)
    batch = some_batch(run)
    with torch.no_grad():
        losses = run.loss(run.model(batch.x), batch)
    limit = losses.median().item()
    found = Closure(run, batch, alone=False)(below=limit)
    assert found.loss.item() == pytest.approx(losses.mean().item(), rel=1e-12)
    gradient = run.weights.grad.clone()
    part = batch.select(losses < limit)
    part.total = len(part)
    share = len(part) / len(batch)
    torch.testing.assert_close(gradient, share * gradient_of(run, part), rtol=1e-10, atol=1e-13)
    Closure(run, batch, alone=False)(below=0.0)
    assert run.weights.grad.abs().max() == 0


@pytest.mark.parametrize("model", [["model.hidden=[16]"], ["model=resnet20"]], ids=["mlp", "resnet20"])
def test_robust_weight_perturbation_is_the_authors_loop(model):
    """calc_awp of utils_rwp.py: copies of the model, SGD of lr 0.01 up the masked loss, differences of the copies."""
    settings = ["sharpness=robust_weight_perturbation", "sharpness.gamma=0.05", "sharpness.steps=3"]
    run = trainer(*SMALL[:-1], *model, *settings, double=True)
    batch = some_batch(run, 16)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(run.model(batch.x).logits, batch.y, reduction="none")
    run.sharpness.threshold = threshold = losses.median().item() + 0.05
    state = copy.deepcopy(run.model.state_dict())
    proxy, counts = copy.deepcopy(run.model), []
    names = [name for name, p in proxy.named_parameters() if "weight" in name and p.dim() > 1]
    diff, scaled = {name: 0.0 for name in names}, {name: 0.0 for name in names}
    for _ in range(3):
        proxy.load_state_dict(state)
        parameters = dict(proxy.named_parameters())
        with torch.no_grad():
            for name in names:
                parameters[name] += 0.05 * scaled[name]
        before = {name: parameters[name].detach().clone() for name in names}
        loss = torch.nn.functional.cross_entropy(proxy(batch.x).logits, batch.y, reduction="none")
        counts.append((loss < threshold).sum().item())
        optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
        optimizer.zero_grad()
        (-(loss * (loss < threshold)).mean()).backward()
        optimizer.step()
        diff = {name: diff[name] + parameters[name].detach() - before[name] for name in names}
        norm = torch.cat([state[name].flatten() for name in names]).norm()
        scale = norm / (torch.cat([diff[name].flatten() for name in names]).norm() + 1e-20)
        scaled = {name: scale * diff[name] for name in names}
    proxy.load_state_dict(state)
    with torch.no_grad():
        for name, parameter in proxy.named_parameters():
            if name in names:
                parameter += 0.05 * scaled[name]
    loss = torch.nn.functional.cross_entropy(proxy(batch.x).logits, batch.y)
    expected = run.weights.flatten(torch.autograd.grad(loss, list(proxy.parameters())))
    assert 0 < counts[0] < 16 and counts[-1] < counts[0]  # and the condition stops some
    found = gradient_of(run, batch)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)
    run.sharpness = build(node("none"), "sharpness")
    assert (gradient_of(run, batch) - found).norm() > 1e-2 * found.norm()


def test_robust_weight_perturbation_below_every_loss_is_the_plain_gradient():
    words = ["sharpness=robust_weight_perturbation", "sharpness.threshold=1e-6"]
    run, plain = trainer(*SMALL, *words), trainer(*SMALL)
    assert torch.equal(gradient_of(run, some_batch(run)), gradient_of(plain, some_batch(plain)))


@pytest.mark.parametrize("name", ["sam", "asam", "robust_weight_perturbation", "gradient_regularization"])
def test_what_is_not_called_a_weight_is_said_where_names_decide(name):
    """LittleBit's layer has factors: ASAM's T is 1 for them, and robust weight perturbation leaves them as they are."""
    words = ["dataset.subset=200", "model.hidden=[16,16]", f"sharpness={name}"]
    assert not trainer(*words).notices and not trainer(*words, "quantization=lsq", "quantization.channels=true").notices
    run = trainer(*words, "quantization=littlebit")
    if name in ("sam", "gradient_regularization"):  # of all tensors
        assert not run.notices
        return
    (line,) = run.notices
    assert name in line and line.endswith("not called a weight: body.3.factors.0.U, body.3.factors.0.V and 2 more")
    seen, factor = [], run.model.body[3].factors[0].U
    objective = run.objective

    def watched(batch):
        seen.append(factor.detach().clone())
        return objective(batch)

    run.objective = watched
    run.gradient(next(run.loader.epoch(0)))
    assert torch.equal(seen[0], seen[-1]) == (name == "robust_weight_perturbation")
    if name == "asam":  # T = 1: the factor's own gradient, scaled
        scale = run.sharpness._scale(run.weights)
        assert (dict(run.weights.views(scale))["body.3.factors.0.U"] == 1).all()
