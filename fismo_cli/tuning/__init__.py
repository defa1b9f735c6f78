"""Search spaces and samplers: what `fismo compare --tune-trials` (and `fismo tune`) try."""
