"""Discrete latents of a program, summed out of its densities."""
