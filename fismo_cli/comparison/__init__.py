"""`fismo compare`: the protocol, its runs, its statistics. Tables and pages are in `fismo_cli.reporting`."""
