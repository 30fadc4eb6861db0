"""The parts of an export: the graphs, the files that hold them, and the model card."""
