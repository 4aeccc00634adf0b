"""Description of a store: its spec, stream kinds, lattice forms, clocks, ids and checksums."""
