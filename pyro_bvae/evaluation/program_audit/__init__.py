"""Mistakes in a Pyro program that change its numbers."""
