"""The parts of ``analysis/speed.py``."""
