"""Signals that tell a process to end: SIGTERM and SIGHUP end it as Ctrl-C does.

A training has a few seconds to come to the end of its epoch, and with it to a checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: Seconds that a training has to finish its epoch.
PATIENCE = 5.0

_NAMES = ("SIGTERM", "SIGHUP")


class Interrupted(KeyboardInterrupt):
    """The process was told to end.

    Attributes:
        signal: The number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class _State:
    """The signal that waits for the end of an epoch, and the number of trainings in progress."""

    pending: int | None = None
    trainings = 0


@contextmanager
def raising_interrupted() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise :class:`Interrupted` in the body, where they would kill it.

    A signal that is ignored, as ``nohup`` has it, stays so, and threads other than the main one
    change nothing.
    """
    own, before = os.getpid(), {}

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a fork
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif _State.trainings and _State.pending is None:
            _State.pending = number
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        else:
            raise Interrupted(number)

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Interrupted(_State.pending or number)

    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGALRM"):
        numbers = [getattr(signal, name) for name in _NAMES]
        handlers = {n: end for n in numbers if signal.getsignal(n) == signal.SIG_DFL}
        if handlers and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL:
            handlers[signal.SIGALRM] = give_up
            before = {number: signal.signal(number, to) for number, to in handlers.items()}
    try:
        yield
    finally:
        if before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.pending = None


@contextmanager
def until_the_epoch_ends() -> Iterator[Callable[[], None]]:
    """Have signals wait while the body runs a training, which calls the function after each epoch.

    The function raises :class:`Interrupted` if a signal waits.
    """

    def end_of_epoch() -> None:
        if _State.pending is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Interrupted(_State.pending)

    _State.trainings += 1
    try:
        yield end_of_epoch
    finally:
        _State.trainings -= 1
