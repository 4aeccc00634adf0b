"""capture.probe."""
