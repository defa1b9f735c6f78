"""Settings of every test process, before torch is imported: one thread, no network, signals as they usually are."""

import os
import signal

import pytest

# One thread each: two workers share two cores better than one with two, and results repeat to the last bit.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# nohup and the background of a script leave these ignored, which fismo respects; tests send them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests begin, so that no process is left with a long one at the end (`--dist loadfile`)."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
