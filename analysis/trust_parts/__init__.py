"""The parts of ``analysis/trust.py``."""
