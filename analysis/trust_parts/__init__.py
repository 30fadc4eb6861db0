"""Parts of the study of trust: planted problems, each kind in a file of its own."""
