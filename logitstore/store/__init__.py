"""Stores as a whole: reading, writing, verification, repair, conversion, comparison and summaries."""
