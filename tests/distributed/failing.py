"""The `fismo` command in a rank of which the last one fails in the third step: started by torchrun.

torchrun --nproc-per-node N failing.py raise|die|read|evaluate|write ARGUMENTS OF FISMO
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from fismo_cli import app
from fismo_cli.tasks import image_parts
from fismo_cli.tasks.images import ImageTask
from fismo_cli.training.checkpoints import store as checkpoint


def failing(work: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The same, but for one call in the last rank, or in a data worker of it."""
    calls = 0

    def changed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
            if sys.argv[1] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("this rank has had enough")
        return work(*arguments)

    return changed


if __name__ == "__main__":
    match sys.argv[1]:
        case "read":
            for kind in (image_parts.TensorPart, image_parts.LazyPart, image_parts.CropFlipPart):
                kind.__getitems__ = failing(kind.__getitems__, 4)
        case "evaluate":
            ImageTask.measure = failing(ImageTask.measure, 3)
        case "write":
            checkpoint.write_tensors = failing(checkpoint.write_tensors, 2)
        case _:
            ImageTask.training_loss = failing(ImageTask.training_loss, 3)
    app.main(sys.argv[2:])
