"""Objectives of training."""
