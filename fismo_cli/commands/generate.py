"""`fismo generate`: text that goes on as a trained language model has it."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fismo_cli.commands.options import refuse
from fismo_cli.commands.output import print_json

__all__ = ["generate"]


def generate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or the folder of its model.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The beginning; without it a new text begins.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="How many tokens to add.")] = 100,
    temperature: Annotated[float, typer.Option(metavar="T", help="Below 1, likely tokens become likelier.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, metavar="K", help="Draw among the K likeliest tokens; 0: all.")] = 50,
    top_p: Annotated[float, typer.Option(metavar="P", help="Draw among the likeliest that make up this share.")] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the likeliest token.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of the draws.")] = 0,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")] = False,
) -> None:
    """Go on with a text by a trained language model."""
    from fismo_cli.commands.trained import refuse_other_task

    refuse(
        (not 0 < temperature < math.inf, f"--temperature {temperature:g}: must be above 0 (or say --greedy)"),
        (not 0 < top_p <= 1, f"--top-p {top_p:g}: must be above 0 and at most 1"),
    )
    refuse_other_task(run, "language-modelling", f"fismo predict {run} IMAGES")
    from fismo_cli.inference.text import Generator, Sampling
    from fismo_cli.reporting.console import say, stderr_console

    sampling = Sampling(greedy=greedy, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    found = Generator(run, device).generate(text, max_new_tokens, sampling)
    if found.left_out:
        say(stderr_console(), f"note: the model has no positions for the first {found.left_out} tokens of the text")
    if as_json:
        print_json({"run": str(run), "prompt": text, **asdict(found)})
    else:
        print(found.text)
