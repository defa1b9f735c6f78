"""The command line around the FISMO optimizer: train, evaluate, presets. Depends on `fismo_core`, never the reverse."""
