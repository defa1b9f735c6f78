"""Makes something fail inside of `fismo`, once: for benchmarks/faults.py, which puts this folder on PYTHONPATH.

FISMO_FAULT=PLACE:CALL:MARKER says where, at which call in a process, and the file that the first process to come
there makes: no other one fails. Nothing happens where the variable is not set.
"""

import importlib.abc
import multiprocessing
import os
import signal
import sys
import time

PLACES = {
    "sample": "fismo_cli.training.data.loading",
    "worker-exit": "fismo_cli.training.data.loading",
    "worker-segfault": "fismo_cli.training.data.loading",
    "worker-memory": "fismo_cli.training.data.loading",
    "slow-sample": "fismo_cli.training.data.loading",
    "forward": "fismo_cli.training.stepping",
    "nan": "fismo_cli.training.stepping",
    "optimizer": "fismo_cli.training.stepping",
    "evaluation": "fismo_cli.training.trainer",
    "checkpoint": "fismo_cli.training.checkpoints.store",
    "record": "fismo_cli.reporting.jsonl",
}
"""Where a fault is -> the module that is changed once it has been imported."""


class Fault:
    """Fires at a call, unless another process did before."""

    def __init__(self, call: int, marker: str, in_worker: bool) -> None:
        self.call, self.marker, self.calls, self.in_worker = call, marker, 0, in_worker

    def fires(self) -> bool:
        if self.in_worker and multiprocessing.parent_process() is None:
            return False
        self.calls += 1
        if self.calls < self.call:
            return False
        try:
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except OSError:
            return False
        return True


def patch(place, module, fault):
    """Change a module so that its part of the work fails when the fault fires."""

    def failing(work, fail, after=False):
        def changed(*arguments, **named):
            result = work(*arguments, **named) if after else None
            if fault.fires():
                return fail(result)
            return result if after else work(*arguments, **named)

        return changed

    def throw(error):
        def fail(result):
            raise error

        return fail

    match place:
        case "sample":  # past what the loader makes of errors of its part
            module._which = lambda part, keys: "a sample"
            module.read_batch = guarded(module, fault, KeyError("pixels"))
        case "worker-memory":
            module.read_batch = guarded(module, fault, MemoryError())
        case "worker-exit":
            module.read_batch = failing(module.read_batch, lambda result: os._exit(3))
        case "worker-segfault":
            module.read_batch = failing(module.read_batch, lambda result: os.kill(os.getpid(), signal.SIGSEGV))
        case "slow-sample":
            module.read_batch = failing(module.read_batch, lambda result: time.sleep(30) or result, after=True)
        case "forward":
            module.Stepper._training_loss = failing(
                module.Stepper._training_loss, throw(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
            )
        case "nan":
            module.Stepper._training_loss = failing(
                module.Stepper._training_loss, lambda loss: loss * float("nan"), after=True
            )
        case "optimizer":
            step = module.torch.amp.GradScaler.step
            module.torch.amp.GradScaler.step = failing(step, throw(ValueError("no such state")), after=True)
        case "evaluation":
            module.evaluate_part = failing(module.evaluate_part, throw(IndexError("class 7 of 2")))
        case "checkpoint":
            module.write_tensors = failing(module.write_tensors, throw(OSError(28, "No space left on device")))
        case "record":
            module.JsonlSink.write = failing(module.JsonlSink.write, throw(OSError(28, "No space left on device")))


def guarded(module, fault, error):
    """`read_batch` of a part that raises an error."""

    class Part:
        def __init__(self, part):
            self.part = part

        def __getitems__(self, keys):
            if fault.fires():
                raise error
            return self.part.__getitems__(keys)

    read = module.read_batch
    return lambda part, keys: read(Part(part), keys)


class Finder(importlib.abc.MetaPathFinder):
    """Changes one module right after it was imported."""

    def __init__(self, place: str, fault: Fault) -> None:
        self.place, self.fault = place, fault

    def find_spec(self, name, path, target=None):
        if name != PLACES[self.place]:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_patch(module):
            run(module)
            patch(self.place, module, self.fault)

        spec.loader.exec_module = run_and_patch
        return spec


if "FISMO_FAULT" in os.environ:
    import importlib.util

    where, number, marker = os.environ["FISMO_FAULT"].split(":", 2)
    sys.meta_path.insert(0, Finder(where, Fault(int(number), marker, where in ("worker-exit", "worker-segfault"))))
