"""Checks before, during and after a fit."""
