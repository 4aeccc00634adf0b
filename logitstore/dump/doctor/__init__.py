"""dump.doctor."""
