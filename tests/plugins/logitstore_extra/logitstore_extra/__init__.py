"""An encoding and a place for logitstore, found by entry points."""
