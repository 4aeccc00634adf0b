"""Targets: rows of a teacher at a student's frame rate, temperature and token table, as padded batches."""
