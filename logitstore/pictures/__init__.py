"""Pictures and HTML without a charting library: escaped markup, colour ramps, palette PNGs, curves."""
