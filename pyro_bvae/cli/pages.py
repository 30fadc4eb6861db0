"""The commands of pages: ``report RUN [RUN ...]``, ``watch RUN``, and ``train --live``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pyro_bvae import report, runs
from pyro_bvae.cli.words import output
from pyro_bvae.core.disk.run_files import evaluation_files
from pyro_bvae.core.inputs.bounds import Bounds
from pyro_bvae.runs.config import TrainConfig


@dataclass(frozen=True)
class Report:
    """Write a run's page in one HTML file, or a page that sets several runs side by side."""

    directories: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory, or that of a sweep, evaluated before, for a page of all its runs; or
    several, for one page that compares them."""
    output: Path | None = None
    """The page; report.html in the run directory by default, and in the current one for several
    runs."""
    data: Path | None = None
    """Where the data of a run lie now, if not where they were."""
    force: bool = False
    """Take over a run directory that another process holds: one that hangs, or whose machine is
    gone."""

    def run(self) -> None:
        """Run the command."""
        if len(self.directories) == 1:
            path = report.write_report(
                self.directories[0], self.output, data=self.data, force=self.force
            )
        else:
            path = report.write_runs(self.directories, self.output or Path("report.html"))
        print(f"page: {path}")
        output.report(page=path)
        if len(self.directories) == 1:
            own = self.directories[0]
            if not runs.is_sweep(own) and not evaluation_files(own)[0].exists():
                print(f"not evaluated yet: 'pyro-bvae evaluate {own}' measures the run")


@dataclass(frozen=True)
class Watch:
    """Show a run in training in a browser on this machine, until Ctrl-C."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    port: Annotated[int, Bounds(0, 65535)] = 8421
    """Port on 127.0.0.1, where nobody else can connect; 0 for a free one."""

    def run(self) -> None:
        """Run the command."""
        from pyro_bvae.report.watching import watch

        watch(self.directory, self.port, on_start=lambda url: print(f"page: {url}", flush=True))


@contextmanager
def live_page(directory: Path, config: TrainConfig, *, resume: bool) -> Iterator[None]:
    """Serve the page of a run while it is trained, and print its address."""
    from pyro_bvae.report.watching import watched

    with watched(directory, config, resume=resume) as address:
        print(f"live page: {address}", flush=True)
        yield
