"""Errors, contexts, seeds, files and safe use of torch and Pyro; this floor knows no model."""
