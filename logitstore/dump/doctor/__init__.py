"""Doctor: checks of machine and manifest before a long job."""
