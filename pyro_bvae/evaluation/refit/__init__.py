"""Local refits: the best member of a guide's family for each datum, certified."""
