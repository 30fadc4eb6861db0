"""Directories of runs on disk: their files are as they were written."""
