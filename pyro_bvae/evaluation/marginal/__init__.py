"""The evidence log p(x) and its bound: estimators, their weights and their errors."""
