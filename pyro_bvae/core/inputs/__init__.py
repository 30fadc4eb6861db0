"""Public functions: arguments of the stated kinds, and one thread at a time."""
