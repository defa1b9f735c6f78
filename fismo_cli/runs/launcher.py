"""Starts the processes of one run by torchrun, watches them, and returns one exit code for all."""

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from fismo_cli.errors import UsageError

__all__ = ["launch"]

SHUTDOWN_SECONDS = 300
"""How long processes that were asked to stop are given to finish a step and save."""


def launch(arguments: Sequence[str], *, nproc: int, threads: int, torchrun_arguments: Sequence[str] = ()) -> int:
    """Run `fismo ARGUMENTS` in several processes of this host, and return their exit code; 128 + N if by signal N.

    Args:
        arguments: of the command that each process runs.
        nproc: processes on this host.
        threads: CPU threads of each, where the environment does not say.
        torchrun_arguments: more of torchrun's own, such as `--nnodes=2 --rdzv-endpoint=HOST:PORT`; without any, the
            processes find each other on this host.

    Raises:
        UsageError: if torchrun does not take its arguments.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, get_args_parser

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what matters is said below, in one line
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # passed on to the processes
    # DDP would warn of models in which no parameter is left out, though it cannot be known that none ever is.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    parser = get_args_parser()
    own = [f"--nproc-per-node={nproc}"]
    if "--shutdown-timeout" in parser.format_help():  # an older one gives 30 seconds
        own.append(f"--shutdown-timeout={SHUTDOWN_SECONDS}")
    if not torchrun_arguments:
        own.append("--standalone")
    try:
        parsed = parser.parse_args([*own, *torchrun_arguments, "-m", "fismo_cli", *arguments])
    except SystemExit:
        raise UsageError(f"torchrun does not take {' '.join(torchrun_arguments)} (see torchrun --help)") from None
    by_address = any(argument.startswith(("--master", "--node")) for argument in torchrun_arguments)
    if parsed.standalone or (parsed.rdzv_backend == "static" and not by_address):
        parsed.rdzv_backend = "c10d"
        parsed.rdzv_endpoint = parsed.rdzv_endpoint or "localhost:0"
    config, command, rest = config_from_args(parsed)
    try:
        elastic_launch(config=config, entrypoint=command)(*rest)
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as error:
        rank, code = _cause({rank: failure.exitcode for rank, failure in error.failures.items()})
        if code > 0:
            return code
        message = f"error: process {rank} of this run was killed by signal {-code}; the others were stopped. "
        print(message + "Continue with --resume auto", file=sys.stderr, flush=True)
        return 128 - code
    return 0


def _cause(codes: Mapping[int, int]) -> tuple[int, int]:
    """The rank and exit code (negative: by a signal) of what made a run fail.

    The others fail too, by losing the connection (code 1) or by being asked to stop.
    """
    by_signal = [item for item in codes.items() if item[1] < 0 and item[1] != -signal.SIGTERM]
    return min(by_signal) if by_signal else max(codes.items(), key=lambda item: item[1])
