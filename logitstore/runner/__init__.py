"""Running a teacher: loading audio ahead, batches, chunks of long recordings, transcripts and checks."""
