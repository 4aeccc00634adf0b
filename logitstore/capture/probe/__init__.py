"""Probe: search for the logits, ids and lengths in somebody else's program, or in a teacher."""
