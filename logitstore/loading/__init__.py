"""Loading: epoch plans, batch samplers and joins of targets to other datasets."""
