"""The decoder's Jacobian, its metric, and geodesics."""
