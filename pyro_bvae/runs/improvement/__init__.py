"""A run whose guide is trained on: the new run, and the file that says so."""
