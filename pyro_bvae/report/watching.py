"""The page of a run in training, on this machine alone."""

from __future__ import annotations

import errno
import json
import os
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pyro_bvae.core.errors import InputError
from pyro_bvae.report.live.charts import training_charts
from pyro_bvae.report.rendering import rendered
from pyro_bvae.report.runs_page import flat
from pyro_bvae.report.tables import trained
from pyro_bvae.runs.config import TrainConfig, read_config
from pyro_bvae.training import History

_HOST = "127.0.0.1"
# The news of a run without an epoch.
_NOTHING: dict[str, Any] = {
    "state": "no epoch is finished yet", "charts": {}, "pictures": [], "ended": False
}  # fmt: skip


def watch(
    run_directory: str | os.PathLike[str],
    port: int = 8421,
    *,
    on_start: Callable[[str], None] | None = None,
) -> None:
    """Serve the page of a run in training until it is interrupted.

    It listens on 127.0.0.1 alone, answers requests of this machine alone, and reads files.

    Args:
        run_directory: The run directory.
        port: The port; 0 for a free one.
        on_start: Called with the address of the page.

    Raises:
        InputError: if there is no such run, or the port is in use.
    """
    directory = Path(run_directory)
    if not (directory / "config.json").is_file():
        raise InputError(f"there is no run in {directory}: it has no config.json")
    with _serving(directory, read_config(directory / "config.json"), port) as server:
        if on_start is not None:
            on_start(server.address)
        server.serve_forever(poll_interval=0.1)


@contextmanager
def watched(directory: Path, config: TrainConfig, *, resume: bool) -> Iterator[str]:
    """Serve the page of a run that this process trains, on a free port, and give its address.

    Args:
        directory: The run directory, which need not be there yet.
        config: The configuration of the run.
        resume: Whether it continues the run in the directory; metrics that lie there already are
            those of an earlier run otherwise, and are not shown.
    """
    with _serving(directory, config, 0) as server:
        if not resume:
            server.earlier = _written(directory)
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


def _written(directory: Path) -> int:
    """Return when the metrics of a run were written, in nanoseconds; 0 for never."""
    try:
        return (directory / "metrics.csv").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _serving(directory: Path, config: TrainConfig, port: int) -> _Server:
    """Return a server of the page of a run.

    Raises:
        InputError: if the port is in use.
    """
    try:
        server = _Server((_HOST, port), _Handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "in use" if error.errno == errno.EADDRINUSE else "not allowed"
        raise InputError(f"'port' {port} is {why}; choose another, or 0 for a free one") from None
    server.directory = directory
    server.page = _page(directory, config).encode("utf-8")
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # On Windows the option lets two servers share a port.
    allow_reuse_address = os.name == "posix"
    directory: Path
    page: bytes
    earlier = 0  # when metrics were written that are those of an earlier run

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{_HOST}:{self.server_address[1]}/"

    def news(self) -> dict[str, Any]:
        """Return the news of the run; none while the metrics are those of an earlier one."""
        if _written(self.directory) in (0, self.earlier):
            return _NOTHING
        return news(self.directory)


class _Handler(BaseHTTPRequestHandler):
    """Answers with the page and its news; a name that is another's host is refused."""

    server: _Server

    def do_GET(self) -> None:
        """Answer a request."""
        known = {f"{host}:{self.server.server_address[1]}" for host in (_HOST, "localhost")}
        if self.headers.get("Host") not in known:
            return self._answer(403, "text/plain", b"for this machine alone\n")
        if self.path == "/":
            return self._answer(200, "text/html; charset=utf-8", self.server.page)
        if self.path == "/news.json":
            content = json.dumps(self.server.news(), allow_nan=False).encode("utf-8")
            return self._answer(200, "application/json", content)
        return self._answer(404, "text/plain", b"no such page\n")

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def _page(directory: Path, config: TrainConfig) -> str:
    return rendered(
        "watch.html", scripts=("charts.js", "watch.js"), connects=True, name=str(directory),
        trained=trained(dict(flat(asdict(config))), None),
    )  # fmt: skip


def news(directory: Path) -> dict[str, Any]:
    """Return how far a run in training is, its charts, and its last pictures.

    Args:
        directory: The run directory.
    """
    epochs = read_config(directory / "config.json").training.epochs
    path, history = directory / "metrics.csv", History()
    if path.exists():
        try:
            history = History.read(path)
        except InputError:  # read between the file and its digest
            return {**_NOTHING, "state": "an epoch is written"}
    done = int(history["epoch"][-1]) if history.rows else 0
    charts = training_charts(history)
    pictures = sorted(directory.glob("snapshots/epoch-*.png"))[-2:]
    return {
        "state": _state(history, done, epochs),
        "charts": {f"chart-{i}": chart.as_dict() for i, chart in enumerate(charts)},
        "pictures": [{"name": path.stem, "src": _source(path)} for path in pictures],
        "ended": done >= epochs,
    }


def _state(history: History, done: int, epochs: int) -> str:
    if not done:
        return str(_NOTHING["state"])
    last = history.rows[-1]
    numbers = ", ".join(
        f"{name} {last[name]:.2f}" for name in ("objective", "distortion", "rate") if name in last
    )
    if done >= epochs:
        return f"all {epochs} epochs are done: {numbers}"
    recent = [row["seconds"] for row in history.rows[-5:] if "seconds" in row]
    left = (epochs - done) * sum(recent) / max(1, len(recent))
    return f"epoch {done} of {epochs}, {left:.0f} s to go: {numbers}"


def _source(path: Path) -> str:
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode('ascii')}"
