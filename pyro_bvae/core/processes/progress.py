"""Progress bars that move by themselves on a terminal, and are a line a minute elsewhere."""

from __future__ import annotations

import io
import sys
import threading
import time
import weakref
from typing import Any

from tqdm import tqdm

# Seconds between two looks at a bar, and between two lines where there is no terminal.
_LOOK, _LINE = 1.0, 60.0


class ProgressBar(tqdm):  # type: ignore[type-arg]
    """A bar of tqdm whose clock runs on while a long step is computed.

    Where the output is no terminal, such as a log file, it is a line a minute without carriage
    returns, the minutes of all bars together, and nothing of a bar that is over sooner.

    Args:
        iterable: As of tqdm.
        **options: As of tqdm.
    """

    _said = time.monotonic()  # when any bar printed its last line

    def __init__(self, iterable: Any = None, **options: Any) -> None:
        self._lines = None if sys.stderr is None or sys.stderr.isatty() else sys.stderr
        self._over = threading.Event()
        if self._lines is not None:
            options |= {"file": io.StringIO(), "leave": False, "mininterval": _LOOK}
        if sys.stderr is None:
            options["disable"] = True
        super().__init__(iterable, **options)
        if not self.disable:
            thread = threading.Thread(
                target=_keep_moving, args=(weakref.ref(self), self._over), daemon=True
            )
            thread.start()

    def move(self, done: float, phase: str = "") -> None:
        """Show how much is done, a part of a unit not counted, and the name of the phase."""
        if self.disable:
            return
        self.set_postfix_str(phase, refresh=False)
        self.update(max(0, int(done) - int(self.n)))

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the bar, or say its line if it is time."""
        if self._lines is None:
            return bool(super().display(msg, pos))
        now = time.monotonic()
        if msg != "" and now - ProgressBar._said >= _LINE:
            ProgressBar._said = now
            print(_line(self.format_dict), file=self._lines, flush=True)
        return True

    def close(self) -> None:
        """End the bar."""
        self._over.set()
        super().close()


def _keep_moving(bar: weakref.ref[ProgressBar], over: threading.Event) -> None:
    """Show a bar every second until it is over or nobody has it any more."""
    while not over.wait(_LOOK):
        here = bar()
        if here is None:
            return
        here.refresh()
        del here


def _line(state: dict[str, Any]) -> str:
    """Return the state of a bar as a line: its phase, how much is done, and the time left."""
    done, total, unit = int(state["n"]), state["total"], state["unit"]
    elapsed, rate = state["elapsed"], state["rate"] or state["n"] / max(state["elapsed"], 1e-9)
    counts = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
    parts = [counts, f"{tqdm.format_interval(elapsed)} gone"]
    if total and rate > 0:
        parts.append(f"about {tqdm.format_interval((total - state['n']) / rate)} left")
    if state["postfix"]:
        parts.append(str(state["postfix"]))
    return f"{(state['prefix'] or '').removesuffix(': ') or 'progress'}: {', '.join(parts)}"
