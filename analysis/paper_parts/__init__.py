"""Parts of `paper_tables.py`: a file for each row, and what all rows share."""
