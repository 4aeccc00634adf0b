"""Token tables, their file formats and differences, and transcripts."""
