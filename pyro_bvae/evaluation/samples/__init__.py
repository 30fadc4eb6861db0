"""Generated samples beside data."""
