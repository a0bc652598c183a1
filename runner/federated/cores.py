"""Work on several cores, by processes that are forked for it and leave nothing behind but their answers."""

import multiprocessing
import pickle
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

import torch

from runner.engine.trainer import Trainer
from runner.record.folder import Died, Stopped

FORK = 0.3  # seconds of one core's work from which on processes for it pay
LOOK = 0.5  # seconds between two looks at whether to stop
TRIES = 2  # of a task whose process was killed
ALONE = "OMP_NUM_THREADS=1 trains all in this one"


@contextmanager
def one_thread(wanted: bool):
    """torch with one thread, where wanted: what processes compute does not depend on which of them it was."""
    threads = torch.get_num_threads()
    if wanted and threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if wanted and threads > 1:
            torch.set_num_threads(threads)


class Cores:
    """The work of rounds, here or by processes on several cores where that pays: the first piece shows how long it
    takes."""

    def __init__(self):
        self.count = 1  # for the clients of the present round
        self.pace: float | None = None  # seconds of a local step, as last measured in this process

    def each(self, run: Trainer, work: Callable, chunks: list[list[int]], steps: list[int]) -> Iterator:
        """work(chunk) of every chunk of clients. steps : of every client in a round."""

        def total(chunks: list[list[int]]) -> int:
            return sum(steps[client] for chunk in chunks for client in chunk)

        def apart(chunk: list[int]) -> tuple:
            run.loss_sum.zero_(), run.correct.zero_()
            run.samples = 0
            done = work(chunk)
            return done, (run.loss_sum, run.correct, run.samples, run.optimizer.param_groups[0]["lr"])

        def look() -> None:
            if run.stop:
                raise Stopped(run.stop)

        for i, chunk in enumerate(chunks):
            if self.count > 1 and self.pace is not None and self.pace * total(chunks[i:]) > FORK:
                several = spread(apart, chunks[i:], min(self.count, len(chunks) - i), look, run.tell)
                for done, (loss_sum, correct, samples, lr) in several:
                    run.loss_sum += loss_sum
                    run.correct += correct
                    run.samples += samples
                    run.optimizer.param_groups[0]["lr"] = lr
                    yield done
                return
            begun = time.perf_counter()
            done = work(chunk)
            self.pace = (time.perf_counter() - begun) / total([chunk])
            yield done


def spread(
    work: Callable[[Any], Any],
    tasks: list[list[int]],
    count: int,
    look: Callable[[], None],
    tell: Callable[[str], None],
) -> Iterator:
    """work(task) of every task, in their order, by `count` processes with one thread each.

    tasks : clients each. work : its answers are pickled, and what else it changes is lost. Whatever it raises is raised
    here. look : called at least every `LOOK` seconds, to raise what ends the wait; the processes are killed then, as
    they are where the caller takes no more answers. A task whose process is killed gets one more try, by a new one and
    alone, as what was short may have been memory; `tell` is told.

    Raises
    ------
    Died
        Of a task two processes were killed, or more without one than there were at first.
    """
    context = multiprocessing.get_context("fork")
    hands: dict[connection.Connection, multiprocessing.Process] = {}
    busy: dict[connection.Connection, int] = {}  # the number of the task in hand
    todo, again = deque(range(len(tasks))), deque()
    deaths, idle_deaths, answers, turn = Counter(), 0, {}, 0

    def hire() -> connection.Connection:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(work, tasks, theirs, [ours, *hands]), daemon=True)
        process.start()
        theirs.close()
        hands[ours] = process
        return ours

    def bury(pipe: connection.Connection) -> str:
        """A process that was killed. Returns how."""
        look()
        process = hands.pop(pipe)
        pipe.close()
        process.join()
        return f"killed (exit code {process.exitcode}; -9 is often a lack of memory)"

    def give(pipe: connection.Connection, index: int) -> None:
        nonlocal idle_deaths
        try:
            pipe.send(index)
            busy[pipe] = index
        except OSError:
            how = bury(pipe)
            todo.appendleft(index)
            idle_deaths += 1
            if idle_deaths > count:
                raise Died(f"processes for clients are {how} again and again; {ALONE}") from None
            tell(f"a process for clients was {how}")
            if not hands:
                hire()

    def lost(pipe: connection.Connection) -> None:
        """Its process was killed with a task in hand."""
        how, index = bury(pipe), busy.pop(pipe)
        deaths[index] += 1
        who = f"client{'s' * (len(tasks[index]) > 1)} {', '.join(map(str, tasks[index]))}"
        if deaths[index] == TRIES:
            raise Died(f"{TRIES} processes that trained {who} were {how}; {ALONE}")
        tell(f"a process that trained {who} was {how}: once more")
        again.append(index)

    try:
        for _ in range(count):
            hire()
        while turn < len(tasks):
            if again and not busy:
                give(hire(), again.popleft())
            elif not again and not any(deaths[index] for index in busy.values()):
                for pipe in [pipe for pipe in hands if pipe not in busy]:
                    if todo and todo[0] < turn + 2 * count:  # so that few answers wait for an earlier one
                        give(pipe, todo.popleft())
            if turn in answers:
                answer, error = answers.pop(turn)
                if error is not None:
                    raise error
                turn += 1
                yield answer
                continue
            for pipe in connection.wait(list(busy), LOOK):
                try:
                    answer = pickle.loads(pipe.recv_bytes())
                except (EOFError, OSError):
                    lost(pipe)
                    continue
                answers[busy.pop(pipe)] = answer
            look()
    finally:
        for pipe, process in hands.items():
            process.kill()
            process.join()
            pipe.close()


def _serve(work: Callable, tasks: list, pipe: connection.Connection, others: list[connection.Connection]) -> None:
    for number in {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}:  # which reach all of them: the parent decides
        signal.signal(number, signal.SIG_IGN)
    for other in others:  # of which the parent must have the only end, so that its death ends this process
        other.close()
    torch.set_num_threads(1)
    while True:
        try:
            index = pipe.recv()
        except EOFError:
            return
        try:
            answer = (work(tasks[index]), None)
        except BaseException as error:
            answer = (None, error)
        try:
            pipe.send_bytes(pickle.dumps(answer))
        except BrokenPipeError:
            return
