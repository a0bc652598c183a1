"""Every seam handed wrong methods of a user's: one line each, that names the file and what the seam expects."""

import pytest
import torch

from runner.core.mistake import ConfigError
from runner.engine.run import Job
from runner.engine.trial import foreign
from tests.engine.own import BASE, HEAD, RIGHT, write
from tests.tiny import compose

BODY = "        super().__init__()\n        self.head = nn.Linear(64, classes)\n"
OUT = "        return Output(self.head(x.flatten(1)), x.flatten(1))\n"
SEAM = "must return runner.core.batch.Output(logits, features)"
AMONG = 'return {**hooks, "federated": self}'
WRONG = {
    "model": [
        (OUT, "        return None\n", f"Own (FILE).forward {SEAM}, got None"),
        (OUT, "        return self.head(x.flatten(1))\n", f"{SEAM}, got a tensor of (2, 10) in float32"),
        (OUT, "        return x.flatten(1), self.head(x.flatten(1))\n", f"{SEAM}, got an object of tuple"),
        (
            OUT,
            "        return Output(self.head(x.flatten(1)).argmax(1), x)\n",
            "must return logits as a floating-point tensor",
        ),
        (OUT, "        return Output(self.head(x.flatten(1)).detach(), x.flatten(1))\n", "a value without a gradient"),
        (
            OUT,
            "        return Output(self.head(x.flatten(1))[:, :7], x.flatten(1))\n",
            "logits of 10 classes, (2, 10), got",
        ),
        (
            OUT,
            "        return Output(self.head(x.flatten(1))[:1], x.flatten(1))\n",
            "logits as a floating-point tensor (2,",
        ),
        (
            OUT,
            "        return Output(self.head(x.flatten(1)), None)\n",
            "features as a floating-point tensor (2, ...), got",
        ),
        (
            OUT,
            "        return Output(self.head(x), x)\n",
            "does not take a batch of (2, 1, 8, 8): RuntimeError: ",
        ),
        (
            OUT,
            "        sys.exit(0)\n",
            "does not take a batch of (2, 1, 8, 8): SystemExit: 0 (FILE, line 26, in forward)",
        ),
        (OUT, "        x.mul_(2)\n" + OUT, "Own (FILE).forward changes what it is given in place"),
        (BODY, "        super().__init__()\n        self.head = lambda x: x[:, :10]\n", "there is nothing to train"),
        (
            BODY,
            "        raise KeyError('no key')\n",
            "model: Own cannot be built: KeyError: 'no key' (FILE, line 23, in",
        ),
        (
            BODY,
            "        self.head = nn.Linear(64, classes)\n",
            "cannot be built: AttributeError: cannot assign module before",
        ),
        ("(nn.Module)", "", "Own (FILE) is no torch.nn.Module, which every option of 'model' is"),
        ("forward", "forwrad", 'NotImplementedError: Module [Own] is missing the required "forward" function'),
    ],
    "loss": [
        (
            "class Own(Loss):\n",
            "class Own(Loss):\n    def notices(self, run):\n        return 'a line'\n",
            "loss: Own (FILE).notices must return a list of lines, got 'a line'",
        ),
        (
            "class Own(Loss):\n",
            "class Own(Loss):\n    def notices(self):\n        return []\n",
            "loss: Own (FILE) fails in notices: TypeError",
        ),
        (
            "return ce(out, batch)",
            "return None",
            "must return one value per sample, a floating-point tensor (2,), got None",
        ),
        ("return ce(out, batch)", "return ce(out, batch).mean()", "got a tensor of () in float32"),
        ("return ce(out, batch)", "return out.logits", "got a tensor of (2, 10) in float32"),
        ("return ce(out, batch)", "return out.logits.argmax(1)", "got a tensor of (2,) in int64"),
        (
            "return ce(out, batch)",
            "return ce(out, batch).detach()",
            "Own (FILE).forward returns a value without a gradient",
        ),
        ("return ce(out, batch)", "return ce(out, batch).tolist()", "got an object of list"),
        ("return ce(out, batch)", "return 1 / 0", "ZeroDivisionError: division by zero (FILE, line 23, in forward)"),
        ("return ce(out, batch)", "sys.exit()", "SystemExit (FILE, line 23, in forward)"),
        (
            "return ce(out, batch)",
            "return out.logits @ out.logits",
            "cannot take logits of (2, 10) and targets of (2,):",
        ),
        ("return ce(out, batch)", "batch.y.fill_(0); return ce(out, batch)", "changes what it is given in place"),
        ("        pass\n", "        return 3\n", "Own (FILE).observe must return nothing"),
        (
            "        pass\n",
            "        self.nothing.x\n",
            "fails in observe: AttributeError: 'Own' object has no attribute",
        ),
        ("forward", "foward", "cannot take logits of (2, 10) and targets of (2,): NotImplementedError"),
        ("(Loss)", "(nn.Module)", "Own (FILE) is no runner.loss.Loss"),
        ("    def observe", "    @property\n    def tasks(self): return self.x\n    def observe", "AttributeError"),
    ],
    "risk": [
        (
            "class Own(Risk):\n",
            "class Own(Risk):\n    def notices(self, run):\n        return 'a line'\n",
            "risk: Own (FILE).notices must return a list of lines, got 'a line'",
        ),
        (
            "class Own(Risk):\n",
            "class Own(Risk):\n    def notices(self):\n        return []\n",
            "risk: Own (FILE) fails in notices: TypeError",
        ),
        ("return losses.mean()", "return None", "must return a scalar, a floating-point tensor (), got None"),
        ("return losses.mean()", "return losses", "got a tensor of (2,) in float32"),
        ("return losses.mean()", "return losses.mean().item()", "must return a scalar"),
        ("return losses.mean()", "return losses.mean(0, keepdim=True)", "got a tensor of (1,) in float32"),
        (
            "return losses.mean()",
            "return losses.mean().detach()",
            "Own (FILE).forward returns a value without a gradient",
        ),
        ("return losses.mean()", "return losses.mean().long()", "got a tensor of () in int64"),
        ("return losses.mean()", "return losses.means()", "cannot take losses of (2,): AttributeError"),
        ("return losses.mean()", "raise SystemExit('bye')", "SystemExit: bye (FILE, line 23, in forward)"),
        ("return losses.mean()", "losses.data.fill_(1); losses.detach().mul_(2); return losses.mean()", "in place"),
        ("        pass\n", "        return losses\n", "Own (FILE).observe must return nothing"),
        ("        pass\n", "        losses[9999]\n", "fails in observe: IndexError"),
        ("(Risk)", "(Loss)", "Own (FILE) is no runner.risk.Risk"),
        ("losses, batch)", "losses)", "cannot take losses of (2,): TypeError: Own.forward() takes 2 positional"),
    ],
    "optim": [
        (
            'super().__init__(params, {"lr": lr})',
            "pass",
            "optim: Own (FILE) has no param_groups, which torch.optim.Optimizer.__init__ makes",
        ),
        ("        loss = closure()\n", "        loss = None\n", "Own (FILE).step must call the closure"),
        ("        loss = closure()\n", "        loss = closure(1)\n", "fails in step(closure): TypeError"),
        ("(self, closure)", "(self)", "fails in step(closure): TypeError"),
        (
            "        return loss\n",
            "        raise RuntimeError('a bug')\n",
            "RuntimeError: a bug (FILE, line 29, in step)",
        ),
        ("        return loss\n", "        sys.exit(3)\n", "SystemExit: 3 (FILE, line 29, in step)"),
        ('{"lr": lr}', "lr", "optim: Own cannot be built: "),
        ('{"lr": lr}', "{}", "optim: Own (FILE) has no 'lr' in its param_groups"),
        (
            "        super().__init__(params",
            "        1 / 0\n        super().__init__(params",
            "cannot be built: ZeroDivision",
        ),
        ("        super().__init__(params", "        dict(params", "optim"),
        ("p.grad", "p.gard", "AttributeError: 'Parameter' object has no attribute 'gard'"),
        ("(torch.optim.Optimizer)", "(Loss)", "Own (FILE) is no torch.optim.Optimizer"),
        ("params, lr", "lr", "optim"),
    ],
    "schedule": [
        ("return 1 - progress", "return None", "Own (FILE).factor must return a finite number at least 0"),
        ("return 1 - progress", "return 'fast'", "got 'fast'"),
        ("return 1 - progress", "return -0.5", "a finite number at least 0, as at step 0 of 6, got -0.5"),
        ("return 1 - progress", "return 0.4 - progress", "as at step 3 of 6, got -0."),
        ("return 1 - progress", "return float('nan')", "got nan"),
        ("return 1 - progress", "return float('inf')", "got inf"),
        ("return 1 - progress", "return True", "got True"),
        ("return 1 - progress", "return torch.tensor([1.0])", "got a tensor of (1,) in float32"),
        ("return 1 - progress", "return 1 / progress", "fails at step 0 of 6: ZeroDivisionError"),
        ("return 1 - progress", "sys.exit()", "fails at step 0 of 6: SystemExit"),
        ("(self, progress, epoch)", "(self, progress)", "fails at step 0 of 6: TypeError"),
        ("factor", "factors", "fails at step 0 of 6: NotImplementedError"),
        ("(Schedule)", "", "Own (FILE) is no runner.schedule.Schedule"),
    ],
    "sharpness": [
        (
            "class Own(Sharpness):\n",
            "class Own(Sharpness):\n    def notices(self, run):\n        return 'a line'\n",
            "sharpness: Own (FILE).notices must return a list of lines, got 'a line'",
        ),
        (
            "class Own(Sharpness):\n",
            "class Own(Sharpness):\n    def notices(self):\n        return []\n",
            "sharpness: Own (FILE) fails in notices: TypeError",
        ),
        ("return first", "return None", "must return the runner.core.batch.Pass of a call of the closure, got None"),
        ("return first", "return first.loss", "Own (FILE).__call__ must return the runner.core.batch.Pass"),
        ("return first", "return 1.0", "got 1.0"),
        ("with weights.restored()", "if True", "must leave the weights as they were, bit for bit"),
        ("return first", "weights.data.zero_(); return first", "must leave the weights as they were"),
        ("first = closure()", "first = closure(1, 2, 3, 4, 5, 6)", "fails: TypeError"),
        ("return first", "return first.missing", "fails: AttributeError"),
        ("return first", "sys.exit(1)", "fails: SystemExit: 1 (FILE, line 27, in __call__)"),
        ("weights.grad, 0.01", "weights.grad[:3], 0.01", "fails: RuntimeError"),
        ("    def __call__", "    m = 'many'\n    def __call__", "m must be a number of samples or None, got 'many'"),
        ("    def __call__", "    m = 0\n    def __call__", "m must be a number of samples or None, got 0"),
        ("__call__", "call", "fails: NotImplementedError"),
        ("(Sharpness)", "", "Own (FILE) is no runner.sharpness.Sharpness"),
    ],
    "quantization": [
        (
            "return model\n    def convert",
            "return None\n    def convert",
            "Own (FILE).prepare must return the model, a torch.nn",
        ),
        ("return model\n    def convert", "return model, 1\n    def convert", "got an object of tuple"),
        ("return model\n    def convert", "return 1 / 0\n    def convert", "ZeroDivisionError: division by zero (FILE"),
        ("return model\n    def convert", "sys.exit()\n    def convert", "SystemExit (FILE, line 23, in prepare)"),
        (
            "return model\n    def convert",
            "return nn.Flatten()\n    def convert",
            "must return runner.core.batch.Output",
        ),
        ("return model\n    def convert", "raise ValueError('no')\n    def convert", "quantization: no"),
        (
            "def convert(self, model, batch):\n        return model",
            "def convert(self, model, batch): pass",
            "convert must",
        ),
        (
            "def convert(self, model, batch):\n        return model",
            "def convert(self, model, batch): 1 / 0",
            "convert fails: Z",
        ),
        ("def convert", "def converts", "convert fails: NotImplementedError"),
        ("def prepare", "def prepares", "NotImplementedError"),
        ("(Transform)", "", "Own (FILE) is no runner.quantization.Transform"),
        ("    def convert", "    @property\n    def begin(self): return self.x\n    def convert", "AttributeError"),
        ("def prepare(self, model, batch)", "def prepare(self, model)", "TypeError"),
    ],
    "hook": [
        ("start(self, run)", "start(self)", "hook: Own (FILE) fails in start: TypeError"),
        (
            "    def start(",
            "    begins = 3\n    def start(",
            "hook=own: Own (FILE) has no begins(steps, steps_per_epoch) that gives runner.core.reach.Begin: TypeError",
        ),
        (
            "    def start(",
            "    def begins(self, *_):\n        return 'soon'\n    def start(",
            "Own (FILE) has no begins(steps, steps_per_epoch) that gives runner.core.reach.Begin: AttributeError",
        ),
        (
            "        return batch\n",
            "        return None\n",
            "hook.own: Own (FILE).batch must return a runner.core.batch.Batch, got None",
        ),
        (
            "        return batch\n",
            "        return batch.x\n",
            "batch must return a runner.core.batch.Batch, got a tensor of (8, 1",
        ),
        (
            "        return batch\n",
            "        return batch.select(slice(0, 0))\n",
            "must return a runner.core.batch.Batch",
        ),
        (
            "return 0.01 * out.logits.square().mean()",
            "return None",
            "loss must return a scalar, a floating-point tensor ()",
        ),
        ("return 0.01 * out.logits.square().mean()", "return out.logits", "got a tensor of (8, 10) in float32"),
        ("return 0.01 * out.logits.square().mean()", "return 'much'", "got 'much'"),
        (
            "return 0.01 * out.logits.square().mean()",
            "return out.logits.data.zero_().mean()",
            "changes what it is given in",
        ),
        ("        self.count += 1\n", "        self.count += self.nothing\n", "fails in step: AttributeError"),
        ("        self.count += 1\n", "        sys.exit(0)\n", "fails in step: SystemExit: 0 (FILE, line 36, in step)"),
        (
            "def gradient(self, run):\n        pass",
            "def gradient(self, run):\n        return run.weights.grad * 2",
            "must return nothing",
        ),
        ("    @contextmanager\n", "", "weights must return a context manager"),
        ('return {"count": self.count}', "return None", "state_dict must return a dict of tensors, numbers, strings"),
        ('return {"count": self.count}', "return {'count': self.before}", "state_dict, or load_state_dict of what it"),
        ('state["count"]', 'state["cuont"]', "fails: KeyError: 'cuont'"),
        (
            "def start(self, run):\n        pass",
            "def start(self, run):\n        run.nothing",
            "hook: Own (FILE) fails in start: AttributeError",
        ),
        (
            "def start(self, run):\n        pass",
            "def start(self, run):\n        raise ValueError('not here')",
            "hook: not here",
        ),
        ("(Hook)", "", "Own (FILE) is no runner.hook.Hook"),
    ],
    "augment": [
        (
            "        return x\n",
            "        return None\n",
            "Own (FILE).pixels must return inputs as it was given them, (8, 1, 8, 8)",
        ),
        ("        return x\n", "        return x[0]\n", "got a tensor of (1, 8, 8)"),
        ("        return x\n", "        return x[:3]\n", "got a tensor of (3, 1, 8, 8)"),
        ("        return x\n", "        return x.expand(-1, 3, -1, -1)\n", "got a tensor of (8, 3, 8, 8)"),
        ("        return x\n", "        return x.nothing\n", "fails in pixels: AttributeError"),
        ("        return x\n", "        sys.exit(0)\n", "fails in pixels: SystemExit: 0 (FILE, line 23, in pixels)"),
        (
            "        return batch\n",
            "        return None\n",
            "Own (FILE).batch must return a runner.core.batch.Batch, got None",
        ),
        ("        return batch\n", "        return batch.x, batch.y\n", "got an object of tuple"),
        ("        return batch\n", "        return replace(batch, z=1)\n", "fails in batch: TypeError"),
        ("batch(self, batch, draw)", "batch(self, batch)", "fails in batch: TypeError"),
        ("(Augment)", "", "Own (FILE) is no runner.augment.Augment"),
        (
            "class Own(Augment):",
            "class Own(Augment):\n    def __init__(self): 1 / 0",
            "augment.own: Own cannot be built: Zero",
        ),
    ],
    "federated": [
        (AMONG, "return None", "Own (FILE).among must return a dict of the run's hooks, got None"),
        (AMONG, "return list(hooks)", "among must return a dict of the run's hooks, got an object of list"),
        (AMONG, "return {'a': self.among}", "among must return a dict of the run's hooks"),
        (AMONG, "return hooks['none']", "fails in among: KeyError: 'none' (FILE, line 23, in among)"),
        (AMONG, "sys.exit(0)", "fails in among: SystemExit: 0 (FILE, line 23, in among)"),
        ("        pass\n", "        run.nothing\n", "object has no attribute 'nothing' (FILE, line 25, in start)"),
        ("        pass\n", "        raise ValueError('not with this')\n", "federated: not with this"),
        ("        pass\n", "        sys.exit(1)\n", "SystemExit: 1 (FILE, line 25, in start)"),
        ("def run", "def rnu", "Own (FILE) defines no run(trainer), the whole of training"),
        ("among(self, hooks)", "among(self)", "fails in among: TypeError"),
        ("(Federated)", "(Hook)", "Own (FILE) is no runner.federated.Federated"),
        (
            "    def among",
            "    def __init__(self): 1 / 0\n    def among",
            "federated: Own cannot be built: ZeroDivision",
        ),
    ],
}
CASES = [(seam, number) for seam, cases in WRONG.items() for number in range(len(cases))]


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A Job with a class of the user's at one seam."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def job(seam: str, code: str, *more: str) -> tuple[Job, str]:
        job.file, base, words = write(tmp_path, seam, code)
        return Job(compose(*base, *words, *more), words)

    return job


@pytest.mark.parametrize("seam", RIGHT)
def test_a_right_method_passes(seam, built):
    job = built(seam, RIGHT[seam][1])
    name = seam if seam not in ("hook", "augment") else f"{seam}.own"
    assert foreign(job.config) == [name]
    assert not list(job.folder.parent.parent.glob("*"))  # nothing is written
    before = torch.get_rng_state()
    again = built(seam, RIGHT[seam][1])
    assert torch.equal(before, torch.get_rng_state())  # the trial leaves nothing behind
    assert torch.equal(job.trainer.weights.data, again.trainer.weights.data)
    assert job.trainer.count == 0


@pytest.mark.parametrize(("seam", "number"), CASES, ids=[f"{seam}-{number}" for seam, number in CASES])
def test_a_wrong_method_is_one_line(seam, number, built, tmp_path):
    old, new, expected = WRONG[seam][number]
    right = RIGHT[seam][1]
    assert old in right
    with pytest.raises(ConfigError) as caught:
        built(seam, right.replace(old, new, 1))
    line = str(caught.value)
    assert expected.replace("FILE", built.file) in line
    assert "\n" not in line and len(line) < 500
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == []


def test_there_are_twelve_of_every_seam():
    assert all(len(cases) >= 12 for cases in WRONG.values())


def test_a_bug_that_shows_later_is_a_line_too(tmp_path, monkeypatch, capsys):
    from runner.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_later.py").write_text(HEAD + RIGHT["hook"][1].replace("self.count += 1", "[1, 2, 3][run.count]"))
    assert main(["+hook.own._target_=own_later.Own", *BASE]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("runner: IndexError: list index out of range (own_later.py, line 36, in step); in full: ")
    assert "Traceback" in open(line.partition("in full: ")[2]).read()
