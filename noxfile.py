"""What is run again and again while working on fismo: `nox -l` lists it, `nox -s fast` runs one.

Everything runs in the environment that is active, which `pip install -e ".[dev]"` has filled: nothing is installed.
What stands behind `--` goes to the tool: `nox -s fast -- -k resume`.
"""

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "fast"]


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's checks and format, and who imports whom."""
    session.run("ruff", "check", ".", *session.posargs)
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strictly."""
    session.run("mypy", *session.posargs)


@nox.session
def fast(session: nox.Session) -> None:
    """The tests that take seconds."""
    session.run("pytest", "-n", "2", "-m", "not slow", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, as the README has them."""
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The pages, into site/; a link that leads nowhere is an error."""
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """The two benchmarks with a goal that a change can miss: the loop, and how soon `fismo --help` answers."""
    session.run("python", "benchmarks/training_loop.py")
    session.run("python", "benchmarks/startup.py")
