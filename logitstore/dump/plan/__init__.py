"""Plan of a dump: sizes and losses of encodings on a sample."""
