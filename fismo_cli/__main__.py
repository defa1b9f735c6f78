"""`python -m fismo_cli`: the same as `fismo`."""

from fismo_cli.app import main

if __name__ == "__main__":
    main()
