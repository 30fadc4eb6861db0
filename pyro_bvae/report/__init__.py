"""A run directory in, one self-contained HTML page out."""

from pyro_bvae.report.build import write_report

__all__ = ["write_report"]
