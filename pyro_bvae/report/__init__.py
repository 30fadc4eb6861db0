"""A run directory in, one self-contained HTML page out."""

from pyro_bvae.report.page import write_report

__all__ = ["write_report"]
