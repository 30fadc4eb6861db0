"""Why latents collapse, and what to do about each cause."""
