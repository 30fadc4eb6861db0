"""The words of a command line in one form, and the form of its output."""
