"""Work on several cores, by processes that are forked for it and leave nothing behind but their answers."""

import multiprocessing
import pickle
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

import torch

from runner.record import Died

LOOK = 0.5  # seconds between two looks at whether to stop
TRIES = 2  # of a task whose process was killed


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
    they are where the caller takes no more answers. A task whose process is killed gets one more try, by the processes
    that are left, or a new one after the last of them: what was short may have been memory. It is said by `tell`.

    Raises
    ------
    Died
        Of a task two processes were killed.
    """
    context = multiprocessing.get_context("fork")
    hands: dict[connection.Connection, multiprocessing.Process] = {}
    busy: dict[connection.Connection, int] = {}  # the number of the task in hand
    todo, deaths, answers, turn = deque(range(len(tasks))), Counter(), {}, 0

    def hire() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(work, tasks, theirs, [ours, *hands]), daemon=True)
        process.start()
        theirs.close()
        hands[ours] = process

    def bury(pipe: connection.Connection, index: int) -> None:
        """Its process was killed with this task in hand."""
        look()
        process = hands.pop(pipe)
        busy.pop(pipe, None)
        pipe.close()
        process.join()
        deaths[index] += 1
        who = f"client{'s' * (len(tasks[index]) > 1)} {', '.join(map(str, tasks[index]))}"
        how = f"(exit code {process.exitcode}; -9 is often a lack of memory)"
        if deaths[index] == TRIES:
            raise Died(
                f"{TRIES} processes that trained {who} were killed {how}; OMP_NUM_THREADS=1 trains all in this one"
            )
        tell(f"a process that trained {who} was killed {how}: once more")
        todo.appendleft(index)
        if not hands:
            hire()

    try:
        for _ in range(count):
            hire()
        while turn < len(tasks):
            for pipe in [pipe for pipe in hands if pipe not in busy]:
                if todo and todo[0] < turn + 2 * count:  # so that few answers wait for an earlier one
                    busy[pipe] = todo.popleft()
                    try:
                        pipe.send(busy[pipe])
                    except OSError:
                        bury(pipe, busy[pipe])
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
                    bury(pipe, busy[pipe])
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
