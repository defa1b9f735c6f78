"""The `fismo` command in a rank of which the last one fails in the third step: started by torchrun.

torchrun --nproc-per-node N failing.py raise|die ARGUMENTS OF FISMO
"""

import os
import signal
import sys
from typing import Any

from fismo_cli import app
from fismo_cli.tasks.images import ImageTask

calls = 0
as_it_is = ImageTask.training_loss


def training_loss(self: ImageTask, *arguments: Any) -> Any:
    global calls
    calls += 1
    if calls == 3 and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
        if sys.argv[1] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("this rank has had enough")
    return as_it_is(self, *arguments)


if __name__ == "__main__":
    ImageTask.training_loss = training_loss
    app.main(sys.argv[2:])
