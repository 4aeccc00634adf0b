"""dump.plan."""
