"""Objectives: what a fit maximises."""
