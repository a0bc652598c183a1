"""Work on several cores, by processes that are forked for it and leave nothing behind but their answers."""

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

import torch

LOOK = 0.5  # seconds between two looks at whether to stop


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


def spread(work: Callable[[Any], Any], tasks: list, count: int, look: Callable[[], None]) -> Iterator:
    """work(task) of every task, in their order, by `count` processes with one thread each.

    work : its answers are pickled, and what else it changes is lost. Whatever it raises is raised here. look : called
    at least every `LOOK` seconds, to raise what ends the wait; the processes are killed then, as they are where the
    caller takes no more answers.

    Raises
    ------
    RuntimeError
        A process died.
    """
    context = multiprocessing.get_context("fork")
    hands: dict[connection.Connection, multiprocessing.Process] = {}
    idle, answers, given, turn = [], {}, 0, 0
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, tasks, theirs, [ours, *hands]), daemon=True)
            process.start()
            theirs.close()
            hands[ours] = process
            idle.append(ours)
        while turn < len(tasks):
            while idle and given < min(len(tasks), turn + 2 * count):  # so that few answers wait for an earlier one
                idle.pop().send(given)
                given += 1
            if turn in answers:
                answer, error = answers.pop(turn)
                if error is not None:
                    raise error
                turn += 1
                yield answer
                continue
            for pipe in connection.wait([pipe for pipe in hands if pipe not in idle], LOOK):
                try:
                    index, *answers[index] = pickle.loads(pipe.recv_bytes())
                except (EOFError, ConnectionResetError):
                    look()
                    hands[pipe].join()
                    raise RuntimeError(
                        f"a process that trained clients died (exit code {hands[pipe].exitcode}; -9 is often a lack of "
                        "memory); OMP_NUM_THREADS=1 trains them in this one"
                    ) from None
                idle.append(pipe)
            look()
    finally:
        for pipe, process in hands.items():
            process.kill()
            process.join()
            pipe.close()


def _serve(work: Callable, tasks: list, pipe: connection.Connection, others: list[connection.Connection]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # which a terminal and a cluster send to all: the parent decides
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
            answer = (index, work(tasks[index]), None)
        except BaseException as error:
            answer = (index, None, error)
        try:
            pipe.send_bytes(pickle.dumps(answer))
        except BrokenPipeError:
            return
