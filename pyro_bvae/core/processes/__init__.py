"""Processes that share a directory, or are told to end."""
