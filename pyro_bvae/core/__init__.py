"""The ground floor: errors, contexts, seeds, files and what makes torch and Pyro safe; it knows no model."""
