"""Text that goes on as a trained language model has it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fismo_cli import transformers_models
from fismo_cli.errors import UsageError
from fismo_cli.tasks.tokenizers import saved_tokenizer
from fismo_cli.training.device import choose_device, explain_memory

__all__ = ["Generated", "Generator", "Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        greedy: Always the likeliest one; nothing else here counts then.
        temperature: Of the softmax; below 1 likely tokens become likelier.
        top_k: Among so many likeliest ones; 0: among all.
        top_p: Among the fewest that have this probability together.
        seed: Of the draws.
    """

    greedy: bool = False
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """As transformers' `generate` has them."""
        if self.greedy:
            return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        return {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


@dataclass(frozen=True)
class Generated:
    """A text that goes on.

    Attributes:
        text: The prompt and what comes after it. Bytes that are no UTF-8 are shown as the replacement character.
        prompt_tokens: How many tokens of the prompt the model has seen.
        left_out: How many it has not, for lack of positions: the first ones.
        new_tokens: How many there are after it.
        ended: Whether the model ended the text.
    """

    text: str
    prompt_tokens: int
    left_out: int
    new_tokens: int
    ended: bool


class Generator:
    """A trained language model with its tokenizer.

    Args:
        path: A run directory, its `model/`, or another folder that transformers has written.
        device: Where to generate: auto, cpu, cuda, cuda:N or mps.

    Raises:
        UsageError: There is no complete language model, it has no tokenizer, or the device is not there.
    """

    def __init__(self, path: Path, device: str = "auto") -> None:
        folder = transformers_models.model_folder(path, str(path))
        tokenizer = saved_tokenizer(folder)
        if tokenizer is None:
            raise UsageError(f"{folder}: there is no tokenizer beside the model")
        self._tokenizer, self._device = tokenizer, choose_device(device, key="--device ")
        network = transformers_models.load_directory(folder, {"vocab_size": tokenizer.vocab_size}, 1, tokenizer)
        self._network: Any = network.float().eval().to(self._device)
        limit = getattr(self._network.config, "max_position_embeddings", None)
        self._positions = limit if isinstance(limit, int) and limit > 0 else None

    def generate(self, prompt: str, new_tokens: int, sampling: Sampling = Sampling()) -> Generated:
        """Go on with a text.

        Where that takes more positions than the model has, it goes on from the last half of them, again and again.

        Args:
            prompt: Its beginning; an empty one begins a new text.
            new_tokens: How many tokens to add, unless the model ends the text before.
            sampling: How they are chosen.

        Raises:
            FismoError: Memory runs out.
        """
        torch.manual_seed(sampling.seed)
        begin = self._tokens(prompt) if prompt else [self._tokenizer.bos]
        tokens, wanted = list(begin), len(begin) + new_tokens
        seen = len(self._context(begin))
        while len(tokens) < wanted and (len(tokens) == len(begin) or tokens[-1] != self._tokenizer.end):
            context = self._context(tokens)
            room = wanted if self._positions is None else self._positions - len(context)
            tokens += self._continuation(context, min(room, wanted - len(tokens)), sampling)
        added = tokens[len(begin) :]
        ended = bool(added) and added[-1] == self._tokenizer.end
        text = tokens[0 if prompt else len(begin) : len(tokens) - ended]
        return Generated(self._tokenizer.decode(text), seen, len(begin) - seen, len(added), ended)

    def _tokens(self, prompt: str) -> list[int]:
        chunks = self._tokenizer.encode([(prompt.encode("utf-8", errors="surrogateescape"), False)])
        return [int(token) for chunk in chunks for token in chunk]

    def _context(self, tokens: list[int]) -> list[int]:
        """What the model sees of a text that goes on."""
        limit = self._positions
        return tokens if limit is None or len(tokens) < limit else tokens[-max(1, limit // 2) :]

    def _continuation(self, context: list[int], count: int, sampling: Sampling) -> list[int]:
        """At most so many tokens more."""
        seen = torch.tensor([context], device=self._device)
        with torch.no_grad(), explain_memory(self._device, lambda: "; ask for fewer tokens"):
            found: list[int] = self._network.generate(
                seen,
                attention_mask=torch.ones_like(seen),
                max_new_tokens=count,
                eos_token_id=self._tokenizer.end,
                pad_token_id=self._tokenizer.end if self._tokenizer.pad is None else self._tokenizer.pad,
                **sampling.arguments(),
            )[0].tolist()
        return found[len(context) :]
