"""Capture of logits from somebody else's program, and the probe that finds them there."""
