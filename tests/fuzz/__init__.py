"""Fuzzing of all that reads a store: golden stores with one file replaced, every checksum put right."""
