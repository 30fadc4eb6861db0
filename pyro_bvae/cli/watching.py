"""The command ``pyro-bvae watch RUN``: the page of a run in training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pyro_bvae.core.inputs.bounds import Bounds


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
