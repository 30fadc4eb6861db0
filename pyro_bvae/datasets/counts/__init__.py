"""Counts: their checks, AnnData files, and simulated ones."""
