"""FISMO in the optimizer track of modded-nanogpt: writes its training script with FISMO in Muon's place.

    python benchmarks/modded_nanogpt.py MODDED_NANOGPT --lr 0.03 --momentum 0.9 --steps 3000

MODDED_NANOGPT is a checkout of https://github.com/KellerJordan/modded-nanogpt. Everything but the optimizer of the
hidden matrices, and the number of steps, stays as it is there. docs/gpu-plan.md says what to run with it, and what
would be a win.
"""

import argparse
import re
import sys
from pathlib import Path

TRACK = Path("records") / "track_3_optimization"
MUON = re.compile(r"^(?P<indent> *)optimizer2 = Muon\((?P<matrices>\[.*?\]),.*?\)\n", re.MULTILINE | re.DOTALL)
STEPS = re.compile(r"^( *)train_steps = \d+", re.MULTILINE)
FISMO = """\
{indent}from fismo_core import FISMO
{indent}optimizer2 = FISMO({matrices}, lr={lr}, momentum={momentum}, weight_decay={weight_decay},
{indent}                   economy="{economy}", process_group=dist.group.WORLD, rows_per_step=batch_size)
{indent}print0(str(optimizer2.plan()))
"""


def with_fismo(script: str, *, lr: float, momentum: float, weight_decay: float, economy: str, steps: int | None) -> str:
    """The track's training script with FISMO in Muon's place.

    Raises:
        ValueError: if the script has no such place, or more than one.
    """
    options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "economy": economy}
    changed, places = MUON.subn(lambda found: FISMO.format(**found.groupdict(), **options), script)
    if steps is not None:
        changed, counts = STEPS.subn(rf"\g<1>train_steps = {steps}", changed)
        places = places if counts == 1 else 0
    if places != 1:
        raise ValueError("the script does not set `optimizer2 = Muon(...)` and `train_steps` once: it has changed")
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--weight-decay", type=float, default=0.025)
    parser.add_argument("--economy", choices=("none", "some", "most"), default="none")
    parser.add_argument("--steps", type=int)
    asked = vars(parser.parse_args())
    folder = asked.pop("checkout") / TRACK
    try:
        script = with_fismo((folder / "train_gpt_simple.py").read_text(encoding="utf-8"), **asked)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    (folder / "train_gpt_fismo.py").write_text(script, encoding="utf-8")
    print(folder / "train_gpt_fismo.py")


if __name__ == "__main__":
    main()
