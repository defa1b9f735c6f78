"""The `fismo` command: its subcommands, loaded when used, and the one place that turns errors into exit codes.

Imports nothing but Typer: `fismo --help` must answer as fast as Python and Typer start. What a subcommand needs is
imported with its module, when it is called.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from fismo_cli.errors import (
    AbortedError,
    ExitCode,
    FismoError,
    PresetError,
    QuietError,
    UsageError,
    first_line,
    place_of,
)

__all__ = ["COMMANDS", "Command", "app", "main"]


class Command(NamedTuple):
    """A command.

    Attributes:
        target: where it is.
        help: its line in `fismo --help`, which is the first line of its own help.
        examples: how it is used.
    """

    target: str
    help: str
    examples: tuple[str, ...]


COMMANDS = {
    "train": Command(
        "fismo_cli.commands.train:train",
        "Train a model as a preset says.",
        (
            "fismo train digits-vit",
            "fismo train my.yaml optimizer.name=muon optimizer.lr=0.02",
            "fismo train my.yaml --resume auto",
            "fismo train my.yaml --nproc 8",
        ),
    ),
    "evaluate": Command(
        "fismo_cli.commands.evaluate:evaluate",
        "Measure a trained model again, or on other data.",
        ("fismo evaluate runs/latest", "fismo evaluate runs/latest data.source=npz data.path=other.npz"),
    ),
    "export": Command(
        "fismo_cli.commands.export:export",
        "Write the weights of a run to one safetensors file.",
        ("fismo export runs/latest weights.safetensors", "fismo export runs/latest best.safetensors --step best"),
    ),
    "predict": Command(
        "fismo_cli.commands.predict:predict",
        "Say the classes of images by a trained model.",
        ("fismo predict runs/latest photo.jpg --top 3", "fismo predict runs/latest folder/ --csv classes.csv"),
    ),
    "generate": Command(
        "fismo_cli.commands.generate:generate",
        "Go on with a text by a trained language model.",
        ('fismo generate runs/latest "def main("', "fismo generate runs/latest --greedy --max-new-tokens 50"),
    ),
    "tune": Command(
        "fismo_cli.commands.tune:tune",
        "Search good settings for a preset.",
        ("fismo tune --trials 50", "fismo tune my.yaml optimizer.name=adamw --trials 40 --workers 2"),
    ),
    "compare": Command(
        "fismo_cli.commands.compare:app",
        "Find out which optimizer is better, and by how much.",
        (
            "fismo compare --baselines adam muon",
            "fismo compare my.yaml --baselines muon soap --tune-trials 5",
            "fismo compare a.yaml b.yaml --baselines muon adamw",
        ),
    ),
    "runs": Command(
        "fismo_cli.commands.runs:runs",
        "List the runs that are there, the newest first.",
        ("fismo runs", "fismo runs --sort top1 --status completed --last 5"),
    ),
    "report": Command(
        "fismo_cli.commands.report:report",
        "Rebuild the tables and the page of a run, a study or a comparison.",
        ("fismo report runs/latest", "fismo report runs/my/a runs/my/b --png both.png", "fismo report studies/NAME"),
    ),
    "validate": Command(
        "fismo_cli.commands.validate:validate",
        "Check a preset and show every error at once.",
        ("fismo validate my.yaml", "fismo validate my.yaml train.epochs=5"),
    ),
    "presets": Command(
        "fismo_cli.commands.presets:app",
        "List, show and copy the presets that come with fismo.",
        ("fismo presets list", "fismo presets copy digits-vit my.yaml"),
    ),
    "doctor": Command(
        "fismo_cli.commands.doctor:doctor",
        "Say what is slow here or will go wrong, and what to do.",
        ("fismo doctor", "fismo doctor my.yaml"),
    ),
    "env": Command(
        "fismo_cli.commands.env:env",
        "Show versions, hardware and settings, for a bug report.",
        ("fismo env", "fismo env --json"),
    ),
}

HELP = {"help_option_names": ["-h", "--help"]}


class _LazyGroup(TyperGroup):
    """Lists commands from the table above and imports a command's module only when that command is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name in COMMANDS else command, rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each with its whole line, where click would cut it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])


# Plain help, as click writes it: panels would cut words in a narrow terminal.
app = typer.Typer(
    cls=_LazyGroup,
    help="Train networks with FISMO, a Fisher-structured momentum-orthogonalized optimizer, and measure it.",
    context_settings=HELP,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _load(name: str) -> Any:
    module, attribute = COMMANDS[name].target.split(":")
    target = getattr(import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(add_completion=False, rich_markup_mode=None)
        target.command(name)(function)
    command = typer.main.get_command(target)
    command.name = name
    command.epilog = "\n".join(("\b", "Examples:", *(f"  {example}" for example in COMMANDS[name].examples)))
    for each in (command, *getattr(command, "commands", {}).values()):
        each.context_settings.update(HELP)
    return command


def _listed() -> None:
    """Stands for a command in the list of commands; `_LazyGroup` calls the real one."""


for _name, _command in COMMANDS.items():
    app.command(_name, help=_command.help)(_listed)


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        typer.echo(f"fismo {version('fismo')}")
    except PackageNotFoundError:
        typer.echo("fismo (not installed: run from a checkout)")
    raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    imported: Annotated[
        str | None,
        typer.Option("--import", metavar="FILE.py", help="Python file with optimizers of your own: own/NAME."),
    ] = None,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; always leaves by SystemExit with one of `ExitCode`.

    `--debug` and `--import FILE.py` may stand anywhere, so that they can be appended to a command.
    """
    if arguments is None:
        _insist_on_utf8()
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):  # what a terminal's encoding lacks must not end a run
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    remaining, imported = _without_import([argument for argument in given if argument != "--debug"])
    with _leaving_in_order() as received:
        code = _run(remaining or ["--help"], debug, received, imported)
    _end_children()
    try:
        sys.stdout.flush()
    except OSError as error:  # The reader of a pipe went away, or what stdout is redirected to is full.
        _discard_stdout()
        code = code if error.errno == errno.EPIPE else _fail(_describe(error))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # One of several processes of a run. Those that used DDP at times abort while the interpreter ends (seen in
        # torch 2.14 in loops of a few lines, too), after all is done and written.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def _without_import(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without each `--import FILE`, and the files."""
    rest: list[str] = []
    files: list[str] = []
    given = iter(arguments)
    for argument in given:
        if argument == "--import":
            files.append(next(given, ""))
        elif argument.startswith("--import="):
            files.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    return rest, files


def _insist_on_utf8() -> None:
    """Start again in Python's UTF-8 mode where file names would be ASCII (LC_ALL=C with PYTHONUTF8=0).

    No path of a preset that has other letters could be opened, and libraries would read and write their files as ASCII.
    """
    if sys.getfilesystemencoding() == "ascii":
        environment = {**os.environ, "PYTHONUTF8": "1"}
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)


def _run(arguments: list[str], debug: bool, received: list["_StoppedBySignal"], imported: Sequence[str]) -> int:
    try:
        if imported:
            from fismo_cli.own_optimizers import use_file

            if len(imported) > 1:
                raise UsageError("--import: give one file; it can import others")
            use_file(imported[0])
        typer.main.get_command(app).main(args=arguments, prog_name="fismo")
    except SystemExit as leaving:
        if _came_of(leaving, KeyboardInterrupt):
            return _fail("interrupted", ExitCode.INTERRUPTED)
        if isinstance(leaving, _StoppedBySignal):
            return _fail(f"stopped by {leaving.name}", leaving.number)
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, QuietError):
            return error.exit_code
        if received:  # a library that was being imported has swallowed it, and is broken now
            return _fail(f"stopped by {received[0].name}", received[0].number)
        notes = getattr(error, "__notes__", [])  # such as what of the work is kept
        if isinstance(error, PresetError | AbortedError):
            message = str(error)  # Each line of a PresetError says itself what it is.
        else:
            message = f"error: {error}" if isinstance(error, FismoError) else _describe(error, debug)
        return _fail("\n".join([message, *notes]), getattr(error, "exit_code", ExitCode.FAILED))
    return ExitCode.DONE


class _StoppedBySignal(SystemExit):
    """A signal that would kill, as an exception: what is open is closed, and half-written files are removed."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number, self.name = 128 + number, signal.Signals(number).name


@contextlib.contextmanager
def _leaving_in_order() -> Iterator[list[_StoppedBySignal]]:
    """Meanwhile SIGTERM and SIGHUP leave by an exception, where nothing else handles or ignores them.

    Gives a list of those that came.
    """
    received: list[_StoppedBySignal] = []

    def leave(number: int, frame: FrameType | None) -> None:
        received.append(_StoppedBySignal(number))
        raise received[-1]

    ours = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    if threading.current_thread() is not threading.main_thread():
        ours = []  # Python lets only the main thread handle signals
    ours = [number for number in ours if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, leave)
    try:
        yield received
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _open_standard_streams() -> None:
    """A closed one would be the first file that is opened, into which others then print."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _end_children() -> None:
    """The interpreter would wait for worker processes that are left, however long; by now nothing needs them."""
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.kill()


def _came_of(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether an exception was raised while one of a kind was handled: Typer turns Ctrl-C into an exit."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


def _describe(error: Exception, debug: bool = False) -> str:
    """One line for an error that nobody foresaw, and a plain sentence for what the system refused."""
    text = first_line(error, "")
    place = getattr(error, "filename", None)
    at = f": {place}" if place else ""
    # Libraries that write files in native code report a full disk in words only.
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in text:
        return f"error: the disk is full{at}; free some space and run again"
    known = PermissionError | IsADirectoryError | NotADirectoryError | FileNotFoundError
    if isinstance(error, OSError) and (isinstance(error, known) or (error.strerror and place)):  # a read-only disk ...
        return f"error: {error.strerror or text}{at}"
    again = "" if debug else "; run again with --debug for the traceback"
    return f"unexpected error: {type(error).__name__}: {text}{place_of(error)}{again}"


def _fail(message: str, code: int = ExitCode.FAILED) -> int:
    # A stderr that is closed leaves nowhere to say anything; the exit code still does.
    with contextlib.suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)
    return code


def _discard_stdout() -> None:
    """Let the interpreter's own flush at exit succeed, so that it does not complain about the broken pipe."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
