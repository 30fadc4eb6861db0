"""Data of known factors."""
