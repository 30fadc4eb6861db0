"""Batteries of damage, kills and nonsense, each with a script that tries all of them."""
