"""Random bases that write the characters of JSON, and random schemas. Not a test file."""

import random
from typing import Any

from random_models import random_base
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from euryale.base.base import Base

EOS = 1
_SPECIAL = ["<s>", "</s>"]
_CHARACTERS = list('{}[]":,.-+0123456789Eabcdefghijklmnopqrstuvwxyz_\\')
_CHARACTERS += ["\u0120", "\u010a", "\u00c3", "\u00a9"]  # byte-level: a space, a newline, two bytes of an e with accent
_LONGER = [
    '{"',
    '":',
    '",',
    '"a',
    "true",
    "false",
    "null",
    "12",
    ':\u0120"',
    "}}",
    "]}",
    ',\u0120"',
    "ab",
    "\u00c3\u00a9",
]


def json_tokenizer(has_longer: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level: single bytes, and some longer pieces that cross the borders of a grammar."""
    pieces = [*_SPECIAL, *_CHARACTERS, *(_LONGER if has_longer else ())]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def json_base(seed: int = 0, num_spare: int = 3, has_longer: bool = True, **settings: Any) -> Base:
    """num_spare: rows of the matrix that are no tokens."""
    tokenizer = json_tokenizer(has_longer)
    settings = {"max_length": 256, "eos": EOS} | settings
    base = random_base(vocab_size=len(tokenizer) + num_spare, seed=seed, **settings)
    return Base(base.model, tokenizer, base.path, base.fingerprint)


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """One whose values end by themselves, so that most answers fit into a few tokens."""
    kinds = ["integer", "string", "pattern", "enum", "const", "boolean", "null", "anyOf", "nullable"]
    kind = rng.choice([*kinds, "object", "object", "object", "array"] if depth else kinds)
    if kind == "integer":
        low = rng.randint(-20, 10)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 300)}
    if kind == "string":
        return {"type": "string", "maxLength": rng.randint(0, 4)}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice(["^[a-c]{1,3}$", "^(ab|ba)x?$", "^[0-9]{2}$"])}
    if kind == "enum":
        return {"enum": rng.sample(["a", "ab", "abc", 1, 12, None, True, {"b": 1}, [1]], 3)}
    if kind == "const":
        return {"const": rng.choice(["ba", 7, False, [], {}])}
    if kind == "anyOf":
        return {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "string", "maxLength": 2}]}
    if kind == "nullable":
        return {"type": ["boolean", "null"]}
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth - 1), "maxItems": rng.randint(0, 3)}
    if kind == "object":
        names = rng.sample(["a", "ab", "b", "name", "t"], rng.randint(1, 3))
        properties = {name: random_schema(rng, depth - 1) for name in names}
        required = [name for name in names if rng.random() < 0.7]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": kind}
