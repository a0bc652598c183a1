"""Hooks: each against its formula, and what evaluation sees."""

import numpy as np
import torch

from runner.core.precision import LossScale
from tests.tiny import SMALL, trainer


def steps(run, count: int):
    for batch in run.loader.epoch(0, 0):
        run.step(batch)
        yield
        if run.count == count:
            return


def test_ema_is_the_recursion_over_weights_and_statistics():
    run = trainer(*SMALL[:-1], "model=resnet20", "hook=ema", "hook.ema.decay=0.3", double=True)
    ema = run.hooks.named["ema"]
    stat = next(k for k in run.model.state_dict() if k.endswith("running_mean"))
    average, buffer = run.weights.data.numpy().copy(), run.model.state_dict()[stat].numpy().copy()
    for t, _ in enumerate(steps(run, 4)):
        d = min(0.3, (1 + t) / (10 + t))
        average = d * average + (1 - d) * run.weights.data.numpy()
        buffer = d * buffer + (1 - d) * run.model.state_dict()[stat].numpy()
    np.testing.assert_allclose(ema.average.numpy(), average, rtol=1e-12)
    live, live_buffer = run.weights.clone(), run.model.state_dict()[stat].clone()
    with run.hooks.weights(run):
        np.testing.assert_allclose(run.weights.data.numpy(), average, rtol=1e-12)
        np.testing.assert_allclose(run.model.state_dict()[stat].numpy(), buffer, rtol=1e-10)
    assert torch.equal(run.weights.data, live)
    assert torch.equal(run.model.state_dict()[stat], live_buffer)


def test_ema_without_warm_up_starts_with_the_whole_decay():
    run = trainer(*SMALL, "hook=ema", "hook.ema.warm=false", "hook.ema.decay=0.9", double=True)
    start = run.weights.clone()
    next(steps(run, 1))
    expected = 0.9 * start + 0.1 * run.weights.data
    torch.testing.assert_close(run.hooks.named["ema"].average, expected, rtol=1e-12, atol=1e-15)


def test_emas_other_ramp_is_the_plain_mean_until_the_decay_is_smaller():
    """CuriousAI/mean-teacher, pytorch/main.py: global_step counts the present update, and "use the true average until
    the exponential average is more correct"."""
    run = trainer(*SMALL, "hook=ema", "hook.ema.warm=mean_teacher", "hook.ema.decay=0.75", double=True)
    seen, averages = [run.weights.clone()], []
    for _ in steps(run, 6):
        seen.append(run.weights.clone())
        averages.append(run.hooks.named["ema"].average.clone())
    for n in (1, 2, 3):  # 1/2, 2/3, 3/4
        torch.testing.assert_close(averages[n - 1], torch.stack(seen[: n + 1]).mean(0), rtol=1e-12, atol=1e-15)
    for n in (4, 5, 6):  # 4/5 and more are above the decay
        torch.testing.assert_close(averages[n - 1], 0.75 * averages[n - 2] + 0.25 * seen[n], rtol=1e-12, atol=1e-15)


def test_emas_first_ramp_is_tensorflows():
    """tf.train.ExponentialMovingAverage: min(decay, (1 + num_updates) / (10 + num_updates))."""
    run = trainer(*SMALL, "hook=ema", "hook.ema.decay=0.2", double=True)
    average, factors = run.weights.clone(), [0.1, 2 / 11, 0.2, 0.2]
    for _, d in zip(steps(run, 4), factors, strict=True):
        average = d * average + (1 - d) * run.weights.data
        torch.testing.assert_close(run.hooks.named["ema"].average, average, rtol=1e-12, atol=1e-15)


def test_evaluation_sees_the_average():
    run = trainer(*SMALL, "hook=ema", "hook.ema.warm=false", "hook.ema.decay=0.999999")
    untrained = run.evaluate(run.dataset.test)
    for _ in steps(run, 5):
        pass
    assert abs(run.evaluate(run.dataset.test)["nll"] - untrained["nll"]) < 1e-3
    run.hooks.evaluations.clear()
    assert run.evaluate(run.dataset.test)["nll"] < untrained["nll"] - 0.01


TAIL = ["dataset.imbalance=10", "hook=drw", "hook.drw.epoch=0", "hook.drw.beta=0.99"]


def about(run) -> list[str]:
    return [line for line in run.notices if line.startswith("hook=drw")]


def test_drw_with_focal_is_lins_balanced_form_and_says_so():
    """Lin et al., equation 5: -alpha (1 - p)^gamma log p, with the class weights as alpha, of mean one in the batch."""
    run = trainer(*SMALL, *TAIL, "loss=focal", "loss.gamma=1.5", double=True)
    batch = run.hooks.batch(run, next(run.loader.epoch(0)))
    n = np.bincount(run.dataset.train.y.numpy(), minlength=10)
    alpha = ((1 - 0.99) / (1 - 0.99 ** n.astype(float)))[batch.y.numpy()]
    alpha /= alpha.mean()
    p = run.model(batch.x).logits.softmax(-1).detach().numpy()[np.arange(len(batch)), batch.y.numpy()]
    expected = (-alpha * (1 - p) ** 1.5 * np.log(p)).mean()
    np.testing.assert_allclose(run.objective(batch)[0].item(), expected, rtol=1e-10)
    (line,) = about(run)
    assert line.startswith("hook=drw weighs the focal loss") and "(1 - p^w)^gamma w CE" in line


def test_drw_says_nothing_where_it_is_as_published_and_that_equal_weights_do_nothing():
    assert about(trainer(*SMALL, *TAIL, "loss=ldam")) == []
    (line,) = about(trainer(*SMALL, *TAIL, "hook.drw.beta=0"))
    assert line == "hook=drw: every class has the same weight, so that it changes nothing"


def test_clip_scales_the_norm_down_and_never_up():
    for limit, factor in ((1e-3, None), (1e6, 1.0)):
        run = trainer(*SMALL, "hook=clip", f"hook.clip.norm={limit}", double=True)
        batch = next(run.loader.epoch(0, 0))
        run.gradient(batch)
        before = run.weights.grad.clone()
        run.hooks.gradient(run)
        norm = float(torch.linalg.vector_norm(before))
        expected = before * (limit / (norm + 1e-6) if factor is None else factor)
        torch.testing.assert_close(run.weights.grad, expected, rtol=1e-12, atol=0)


def test_hooks_act_in_the_order_in_which_they_were_chosen():
    assert list(trainer(*SMALL, "hook=[clip,ema]").hooks.named) == ["clip", "ema"]
    assert list(trainer(*SMALL, "hook=[ema,clip]").hooks.named) == ["ema", "clip"]


def test_the_loss_scale_halves_on_overflow_and_doubles_after_quiet_steps():
    scale = LossScale(16.0, growth_interval=3)
    seen = []
    for event in "gggogggggg":
        scale.good() if event == "g" else scale.overflow()
        seen.append(scale.value)
    assert seen == [16, 16, 32, 16, 16, 16, 32, 32, 32, 64]
    assert scale.skipped == 1


def test_an_optimizer_that_calls_the_closure_often_is_observed_once(monkeypatch):
    run = trainer(*SMALL, "optim=sgd", double=True)
    run.optimizer = torch.optim.LBFGS(run.weights.parameters, lr=0.1, max_iter=4)
    run.base_lrs = [0.1]
    seen = []
    monkeypatch.setattr(run.loss, "observe", lambda out, batch: seen.append(1))
    batch = next(run.loader.epoch(0, 0))
    first = run.step(batch)
    second = run.step(batch)
    assert second < first
    assert len(seen) == 2
    assert run.samples == 2 * len(batch)


def test_hooks_on_logits_say_what_they_are_to_a_regression():
    words = ["dataset=diabetes", "loss=conr", "hook=[saf,mesa,logit_z]", "train.epochs=40"]
    said = [line for line in trainer(*words).notices if "regression" in line]
    assert [line.split()[0] for line in said] == ["hook=saf", "hook=mesa", "hook=logit_z"]
    assert all("it changes nothing" in line for line in said[:2])
    assert not [line for line in trainer(*SMALL, *words[2:]).notices if "regression" in line]


def test_an_m_that_cuts_no_batch_is_said():
    own = [trainer(*SMALL, "optim=sam", f"sharpness.m={m}").notices for m in (31, 32)]
    assert [[line for line in lines if "sharpness.m" in line] for lines in own] == [
        [],
        ["sharpness.m=32: no batch has more than 32 samples, one perturbation is for all of them"],
    ]
