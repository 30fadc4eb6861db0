"""Trained runs applied: compared with each other, and to the cells of an AnnData."""
