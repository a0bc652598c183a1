"""One run: from a checked config to result.json."""

import logging
import signal
import sys
import tempfile
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from runner.command.build import build
from runner.command.config import Train, without_effect
from runner.core import checkpoint, distributed, output
from runner.core.mistake import ConfigError
from runner.engine import diagnose, trial
from runner.engine.assemble import Elsewhere, as_config_error, assemble, prepare
from runner.engine.final import final, samples
from runner.engine.result import heading, pictures_of, result_of, summary
from runner.engine.trainer import Trainer
from runner.record import again, provenance
from runner.record.files import finished
from runner.record.folder import Record, Stopped
from runner.record.identity import folder, identity

warn = logging.getLogger(__name__).warning


def run(config: dict, overrides: list[str], say=print) -> dict:
    """Train what `config` (plain dicts, checked by `runner.command.config.check_all`) describes, in its own folder.

    A finished run is returned as it is, an interrupted one goes on. Returns what result.json holds.

    Raises
    ------
    ConfigError
        What can only be found out with the data and the device at hand; nothing has been written then.
    Stopped
        After SIGINT, SIGTERM or SIGHUP, with the state saved.
    """
    say = spoken if say is print else say
    tell = say if distributed.rank == 0 else lambda *_: None
    place = folder(config)
    trouble, result = distributed.from_first(_found(config, place) if distributed.rank == 0 else None)
    if trouble:
        raise ConfigError(trouble)
    if result is not None:
        tell(f"{again.greeting(config, result, place)}\n{summary(result)}")
        return result
    job = Job(config, overrides)
    trainer = job.trainer
    bar = _Bar(trainer.steps, tell)
    trainer.tell = bar.tell
    with output.unbreakable(), job.locked(), signals(lambda name: setattr(trainer, "stop", name)) as end:
        job.resume()
        job.start()
        tell(heading(config, overrides, trainer, job.federated, place))
        with bar.shown(trainer):
            job.federated.run(trainer)
        try:
            end()
            result = job.finish()
        except Interrupted as name:
            raise Stopped(str(name)) from None
    tell(f"{summary(result)}\n{output.near(place)}")
    return result


def spoken(text: str) -> None:
    print(output.fitted(text), flush=True)


def _found(config: dict, place: Path) -> tuple[str | None, dict | None]:
    """(why what is there is no result of this run, the result of a finished run)"""
    trouble = again.trouble(config, place)
    return trouble, None if trouble else finished(place)


class Job:
    """One run, built from its config and not begun: nothing is written before `locked`.

    Building sets all global state anew (see `prepare`). Raises ConfigError.
    """

    def __init__(self, config: dict, overrides: list[str]):
        self.config, self.overrides, self.folder = config, overrides, folder(config)
        self.lines: int | None = None  # of metrics.jsonl at the checkpoint that `resume` found
        train = Train(**config["train"])
        asked = train.channels_last
        train.channels_last = distributed.from_first(again.channels_last(self.folder, asked))
        device = distributed.device(config["device"])
        prepare(config["seed"], train, device)
        loggers = [build(node, f"logger.{name}") for name, node in config["logger"].items()]
        self.record = Record(self.folder, loggers) if distributed.rank == 0 else Elsewhere(self.folder)
        with trial.one_line():
            if others := trial.tried(config):
                with tempfile.TemporaryDirectory() as scratch:  # what they write there is gone with it
                    made, _, *rest = assemble(trial.central(config), train, device, Elsewhere(Path(scratch)))
                    trial.two_steps(made, *rest, others)
                    del made, rest
                prepare(config["seed"], train, device)
            built = assemble(config, train, device, self.record)
        self.trainer, self.federated, self.transform, self.calibration = built
        self.trainer.notices += without_effect(config, overrides).values()
        if asked not in ("auto", train.channels_last):
            self.trainer.notices.append(f"train.channels_last={asked}: the run began with another, and goes on so")
        data = self.trainer.dataset.record.get("fingerprint")
        self.trainer.made = {"id": identity(config), **provenance.code(config), "data": data}
        self.trainer.made["channels_last"] = self.trainer.channels_last
        if device.type == "cpu":
            self.trainer.made["threads"] = torch.get_num_threads()

    @contextmanager
    def locked(self):
        """Alone with the folder; an exception inside is kept there as what became of the run."""
        with as_config_error("name"):
            self.record.__enter__()
        try:
            yield
        except BaseException:
            self.record.__exit__(*sys.exc_info())
            raise
        self.record.__exit__(None, None, None)

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one and something to train.

        Raises ConfigError where it is damaged, or of other code or data.
        """
        path, trainer = self.folder / "last.pt", self.trainer
        if not trainer.steps:
            return
        if not distributed.from_first(path.exists()):
            if distributed.rank == 0 and (epoch := again.reached(self.folder)):
                lines = self.folder / "metrics.jsonl"
                warn("%s goes to epoch %s, but there is no last.pt to go on from: begun anew", lines, epoch)
            return
        try:
            state = checkpoint.load(path)
            if not trainer.state_dict().keys() <= state.keys():
                raise checkpoint.Damaged(f"{path} does not hold the state of a run")
            if (of := (state.get("made") or {}).get("id", trainer.made["id"])) != trainer.made["id"]:
                raise checkpoint.Damaged(f"{path} is of another run, {of}")
        except checkpoint.Damaged as damage:
            raise ConfigError(again.torn(str(damage), self.folder)) from damage
        if differ := provenance.changed(state.get("made"), trainer.made):
            raise ConfigError(
                f"{self.folder} is at step {state['count']:,} of {trainer.steps:,}, but {'; '.join(differ)}: put that "
                f"back to go on, or {provenance.AGAIN}"
            )
        try:
            trainer.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            why = f"{path} does not fit what this command builds ({said:.300})"
            raise ConfigError(again.torn(why, self.folder)) from error
        trainer.notices += provenance.drifted(state.get("made"), trainer.made)
        self.lines = state["lines"]

    def start(self) -> None:
        with as_config_error("name"):
            self.record.start(self.config, self.overrides, self.lines)
        if self.record.lost:
            self.trainer.notices.append(self.record.lost)

    def finish(self) -> dict:
        """After the last step: what is measured once, what is deployed, the pictures, and result.json."""
        from runner.quantization.deploy import report

        found = final(self.trainer)
        result = result_of(self.config, self.trainer, found)
        if quantized := report(self.trainer, self.transform, self.calibration):
            result["quantization"] = quantized
            for key, name in (("fake", "fake-quantized"), ("deployed", "deployed")):
                diagnose.check_measures(self.trainer, name, quantized[key])
        drawn = pictures_of(result)
        if (made := samples(self.trainer)) is not None and distributed.rank == 0:
            from runner.record import grid

            grid.save(self.folder, made.numpy(), self.trainer.dataset.bounds)
            drawn["samples.png"] = partial(grid.draw, self.folder)
        self.record.finish(result, drawn)
        return result


class Interrupted(KeyboardInterrupt):
    """A signal that came when there was nothing left to save; its name."""


@contextmanager
def signals(stop):
    """SIGINT, SIGTERM and SIGHUP are acknowledged in a line and call stop(their name), and training ends after the
    present step; a second SIGINT ends it at once.

    Yields what is to be called when training is over and saved: from then on a signal raises Interrupted where it
    comes, and one that came before does so now.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked, over = "", False

    def ask(number, frame):
        nonlocal asked
        first, asked = not asked, asked or signal.Signals(number).name
        if first and distributed.rank == 0:
            what = "the state is saved" if over else "after this step, with the state saved; Ctrl-C: at once"
            output.at_once(f"{asked}: stopping{';' * over} {what}")
        if over:
            raise Interrupted(asked)
        stop(asked)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def end():
        nonlocal over
        over = True
        if asked:
            raise Interrupted(asked)
        signal.signal(signal.SIGINT, ask)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup means what it says
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Bar:
    """A progress bar with rate and ETA on a terminal; nothing but the epochs' lines elsewhere."""

    def __init__(self, steps: int, say):
        self.steps, self.say, self.bar = steps, say, None

    @contextmanager
    def shown(self, trainer: Trainer):
        if distributed.rank == 0 and self.say is spoken and sys.stderr.isatty():
            from tqdm import tqdm

            with tqdm(
                total=self.steps, initial=trainer.count, unit=" step", leave=False, dynamic_ncols=True
            ) as self.bar:
                trainer.progress = self.bar
                yield
            self.bar = None
        else:
            yield

    def tell(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(output.fitted(line))
        else:
            self.say(line)
