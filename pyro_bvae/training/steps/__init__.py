"""One step of a fit: plain, compiled, or as a CUDA graph."""
