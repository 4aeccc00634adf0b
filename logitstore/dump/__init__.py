"""Dump jobs: a manifest through a teacher into a store."""
