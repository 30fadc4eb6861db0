"""The command line, the one room that prints."""

from pyro_bvae.cli._main import main

__all__ = ["main"]
