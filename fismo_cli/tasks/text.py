"""Language modelling: packed blocks of tokens, loss and metrics."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fismo_cli.errors import UsageError
from fismo_cli.preset.schema import TextPreset
from fismo_cli.tasks.base import Batch, Sums, Task
from fismo_cli.tasks.identity import TOKENIZER
from fismo_cli.tasks.text_sources import load_text
from fismo_cli.tasks.token_cache import TokenStream, tokenise
from fismo_cli.tasks.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from fismo_cli.words import counted

__all__ = ["BlockPart", "TextTask", "build_text_task"]


class BlockPart:
    """Packed blocks: sample i predicts `block` tokens from those before them.

    Args:
        stream: The part's tokens.
        block: Tokens that a sample predicts; sample i is tokens[i * block : i * block + block + 1].
        weigh_bytes: Whether a batch carries "bytes", the text bytes that each sample stands for: the part's ratio,
            where a token's own bytes are not known.
    """

    def __init__(self, stream: TokenStream, block: int, *, weigh_bytes: bool) -> None:
        self.stream = stream
        self.block = block
        self.bytes_per_block = block * stream.text_bytes / max(1, len(stream.tokens)) if weigh_bytes else None

    def __len__(self) -> int:
        return max(0, (len(self.stream.tokens) - 1) // self.block)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        starts = np.array([index for _, index in keys])[:, None] * self.block
        tokens = torch.from_numpy(self.stream.tokens[starts + np.arange(self.block + 1)].astype(np.int64))
        batch = {"inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}
        if self.bytes_per_block is not None:
            batch["bytes"] = torch.full((len(keys),), self.bytes_per_block)
        return batch


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """Next-token prediction.

    Attributes:
        tokenizer: makes the tokens; saved with the model.
        block_size: tokens that a sample predicts.
    """

    tokenizer: Tokenizer
    block_size: int

    def training_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's own: mean cross-entropy of the next token, in nats, and what it adds (a router's balance)."""
        loss: Tensor = model(input_ids=batch["inputs"], labels=batch["targets"], use_cache=False).loss
        return loss

    def measure(self, model: nn.Module, batch: Batch) -> Sums:
        """Sums of nats over tokens, of tokens, and of the bytes of text that they stand for."""
        targets = batch["targets"]
        losses = functional.cross_entropy(_logits(model, batch).flatten(0, 1), targets.flatten(), reduction="none")
        exact = torch.float32 if losses.device.type == "mps" else torch.float64  # mps has no float64
        if "bytes" in batch:
            text_bytes = batch["bytes"].sum(dtype=exact)
        else:  # the byte tokenizer: every target but the end of a text is one byte
            text_bytes = (targets != self.tokenizer.end).sum().to(exact)
        return {
            "loss": losses.sum(dtype=exact),
            "tokens": torch.full((), targets.numel(), dtype=exact, device=losses.device),
            "bytes": text_bytes,
        }

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss` in nats a token, `perplexity` a token (infinite where it overflows), `bits_per_byte` of the text."""
        loss = sums["loss"] / sums["tokens"]
        return {
            "loss": loss,
            "perplexity": math.inf if loss > 700 else math.exp(loss),
            "bits_per_byte": sums["loss"] / math.log(2) / sums["bytes"] if sums["bytes"] else math.inf,
        }


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (B, block, vocabulary) in float32."""
    logits: Tensor = model(input_ids=batch["inputs"], use_cache=False).logits
    return logits.float()


def _special_notes(parts: Mapping[str, BlockPart]) -> Iterator[str]:
    for name, part in parts.items():
        spelled = part.stream.spelled
        if spelled:
            places = counted(sum(spelled.values()), "place")
            most = ", ".join(f"{text} {times:,}" for text, times in list(spelled.items())[:3])
            yield (
                f"the text of the {name} part spells special tokens in {places} ({most}): that "
                "stays text; an end of text follows each document (text-files: each file)"
            )
        if part.stream.specials:
            places = counted(part.stream.specials, "place")
            yield (
                f"the tokenizer makes special tokens of {places} in the text of the {name} "
                "part, and cannot do otherwise: take them out of the text"
            )


def build_text_task(preset: TextPreset, *, split: bool = True) -> TextTask:
    """Open and tokenise the text of a preset; without `split` no parts are cut off, for measuring all of it.

    Raises:
        UsageError: The text or the tokenizer cannot be used, or there is too little of it for a block.
    """
    data = preset.data
    if preset.model.library != "transformers":
        raise UsageError("model.library: language-modelling takes its models from transformers; write transformers")
    tokenizer = load_tokenizer(data.tokenizer)
    source = load_text(data, split=split)
    cache_dir = Path(data.cache_dir).expanduser() if data.cache_dir is not None else None
    parts: dict[str, BlockPart] = {}
    for name, documents in source.parts.items():
        stream = tokenise(documents, tokenizer, cache_dir)
        part = BlockPart(stream, data.block_size, weigh_bytes=not isinstance(tokenizer, ByteTokenizer))
        if len(part) == 0:
            raise UsageError(
                f"data.block_size: the {name} part has {len(stream.tokens)} tokens in {len(documents)} documents, but "
                f"one block needs {data.block_size + 1}; give more text, a larger fraction or a smaller block"
            )
        parts[name] = part
    return TextTask(
        train=parts.get("train") or next(iter(parts.values())),
        validation=parts.get("validation"),
        test=parts.get("test"),
        model_args={
            "vocab_size": tokenizer.vocab_size,
            "bos_token_id": tokenizer.bos,
            "eos_token_id": tokenizer.end,
            "pad_token_id": tokenizer.pad,
        },
        description={
            "source": data.source,
            **source.record,
            "tokenizer": data.tokenizer,
            "block_size": data.block_size,
            "samples": {name: len(part) for name, part in parts.items()},
            "tokens": {name: len(part.stream.tokens) for name, part in parts.items()},
            "documents": {name: len(documents) for name, documents in source.parts.items()},
            "identity": {
                **source.identity,
                TOKENIZER: {TOKENIZER: {"count": tokenizer.vocab_size, "sha256": tokenizer.identity()}},
            },
        },
        notes=(*source.notes, *_special_notes(parts)),
        tokenizer=tokenizer,
        block_size=data.block_size,
    )
