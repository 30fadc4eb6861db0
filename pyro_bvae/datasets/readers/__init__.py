"""Readers of a person's own files."""
