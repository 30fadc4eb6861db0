"""Many models in one program, trained beside each other."""
