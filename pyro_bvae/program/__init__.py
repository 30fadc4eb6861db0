"""Any pair of a Pyro model and guide, as log densities of many particles for each datum."""
