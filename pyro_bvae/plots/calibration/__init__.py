"""Figures of calibrations."""
