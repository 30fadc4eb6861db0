"""What the latents tell of the data: rates, mutual information, and holes of the aggregate."""
