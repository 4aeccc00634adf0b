"""Reports: one self-contained HTML page about a store, two stores, or a student beside its targets."""
