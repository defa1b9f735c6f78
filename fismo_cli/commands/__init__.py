"""One file a command: it parses its options, calls one function and prints what that returns."""
