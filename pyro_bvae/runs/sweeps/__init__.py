"""Sweeps: directories of runs trained side by side, read back in the order of their settings."""
