"""One thread at a time runs Pyro.

Pyro's handlers and its parameter store, and torch's generators, belong to the process and not to a
thread: a fit in one thread would see the sites, the parameters and the noise of another's.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds of waiting after which a thread says so.
PATIENCE = 5.0


class _Turns:
    """A re-entrant lock that knows its holder."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.holder: threading.Thread | None = None
        self.depth = 0

    def take(self) -> None:
        """Wait for the turn, and warn once if that takes long."""
        if not self.lock.acquire(blocking=False) and not self.lock.acquire(timeout=PATIENCE):
            holder = self.holder
            name = "another thread" if holder is None else f"thread '{holder.name}'"
            warnings.warn(
                f"thread '{threading.current_thread().name}' waits for {name}: Pyro's state is"
                " global, so fits and measurements of one process run one after the other",
                stacklevel=7,
            )
            self.lock.acquire()
        self.holder, self.depth = threading.current_thread(), self.depth + 1

    def give(self) -> None:
        """Give the turn to whichever thread waits."""
        self.depth -= 1
        if not self.depth:
            self.holder = None
        self.lock.release()

    def forget(self) -> None:
        """Free the turn of a thread that a forked process, of the forking thread alone, lacks."""
        if self.holder is not None and self.holder is not threading.current_thread():
            self.lock, self.holder, self.depth = threading.RLock(), None, 0


_turns = _Turns()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_turns.forget)


@contextmanager
def turn() -> Iterator[None]:
    """Run the body while no other thread runs a fit or a measurement of this package.

    All that the package runs takes its turn by itself, and turns within a turn are free. A person's
    own Pyro or random numbers of torch in another thread are not seen: they mix with the package's,
    and both give other numbers, unless they stand under ``with turn():`` too. A thread that holds
    the turn must not wait for one that needs it.
    """
    _turns.take()
    try:
        yield
    finally:
        _turns.give()


@contextmanager
def computing() -> Iterator[None]:
    """Take a turn, as :func:`turn` does; gradients can be taken in the outermost one.

    So a fit or a measurement does not depend on the caller's ``torch.no_grad()``.
    """
    import torch

    with turn():
        if _turns.depth > 1:
            yield
            return
        with torch.inference_mode(False), torch.enable_grad():
            yield
