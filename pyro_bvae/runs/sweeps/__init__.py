"""Sweeps: directories of runs, trained side by side, and read back in the order of their settings."""
