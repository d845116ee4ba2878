"""Random configs of the supported families: each is reproduced, or refused at load in one line.

    python tests/fuzz_configs.py 500 0              500 configs from seed 0; what is wrong is printed and exits with 1
    python tests/fuzz_configs.py 500 0 llama gpt2   of these families alone

A config is the tiny one of tiny_families.py with one to three of its fields changed: flags turned, numbers off by one,
doubled, zero or missing, activations and ropes exchanged, layers of other kinds, leftovers of other models. What
transformers makes of it is the reference: its own greedy text, or its own failure, which must be a UserError of ours.
Not a test file itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from odd_configs import GENERATION, Changes, any_change, one_of
from random_models import HEAD_DESIGNS, letter_tokenizer, random_heads, random_tree
from tiny_families import random_model, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.base.config_check import settle_leftovers
from euryale.base.families import SUPPORTED
from euryale.decoding.engine import Engine
from euryale.errors import UserError

_NEW_TOKENS = 10
_PROMPTS = ([5, 1, 7, 7, 2, 0, 3], [3, 4])


class Outcome(NamedTuple):
    """What became of one config: `equal`, `refused`, or what is wrong with it."""

    kind: str
    detail: str = ""


def save_case(family: str, changes: Changes, generation: Changes, folder: Path) -> PreTrainedModel | None:
    """A folder with this config, and the random model that it describes; None: transformers makes none of it."""
    config = tiny_config(family)
    raw = json.loads(config.to_json_string(use_diff=False)) | {"architectures": ["AnyForCausalLM"]} | changes
    written = json.dumps(raw)
    model = None
    (folder / "config.json").write_text(written)
    # Whatever transformers raises is for what it does not take: the product is to refuse it.
    with contextlib.suppress(Exception):
        read = AutoConfig.from_pretrained(folder)
        settle_leftovers(read)
        model = random_model(read)
    try:
        (model or random_model(config)).save_pretrained(folder)
        (folder / "config.json").write_text(written)
        if model is not None:
            how: Changes = {"config": read, "dtype": torch.float32, "attn_implementation": "eager"}
            model = AutoModelForCausalLM.from_pretrained(folder, **how)
    except Exception:
        model = None
    (folder / "config.json").write_text(written)
    letter_tokenizer(40).save_pretrained(folder)
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return model


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: list[int], eos_ids: tuple[int, ...], length: int) -> list[int]:
    """transformers' own greedy text, without what its generation config would do to it."""
    model.generation_config = GenerationConfig()
    num = min(_NEW_TOKENS, length - len(prompt))
    try:
        return generated(model, prompt, eos_ids, num)
    except Exception:  # its cache and its eager attention do not take every config: the whole text again for each token
        model.set_attn_implementation("sdpa")
        ids = list(prompt)
        while len(ids) < len(prompt) + num and not (len(ids) > len(prompt) and ids[-1] in eos_ids):
            logits_1TV = model(input_ids=torch.tensor([ids]), use_cache=False, return_dict=True).logits
            ids.append(int(logits_1TV[0, -1].argmax()))
        return ids[len(prompt) :]


def generated(model: PreTrainedModel, prompt: list[int], eos_ids: tuple[int, ...], num: int) -> list[int]:
    ids_1T = torch.tensor([prompt])
    out = model.generate(
        ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        do_sample=False,
        use_cache=True,
        max_new_tokens=num,
        eos_token_id=list(eos_ids),
        pad_token_id=0,
    )
    ids = out if isinstance(out, torch.Tensor) else out.sequences
    return ids[0, len(prompt) :].tolist()


@torch.inference_mode()
def gap(model: PreTrainedModel, ids: list[int]) -> float:
    """Between the two best logits, relative to their spread."""
    logits_V = model(input_ids=torch.tensor([ids]), use_cache=False, return_dict=True).logits[0, -1]
    best = logits_V.topk(2).values
    return float((best[0] - best[1]) / logits_V.std().clamp(min=1e-9))


def engines(base: Base, rng: random.Random) -> Iterator[tuple[str, Engine]]:
    yield "none", Engine(base, drafter="none")
    heads = random_heads(HEAD_DESIGNS[0], base)
    yield "heads", Engine(base, heads, "heads", random_tree(rng, heads.num_heads, 4, 12))
    yield "lookahead", Engine(base, drafter="lookahead")


def check_case(family: str, changes: Changes, generation: Changes, seed: int = 0) -> Outcome:
    """What becomes of this config."""
    with tempfile.TemporaryDirectory() as name, quiet():
        model = save_case(family, changes, generation, Path(name))
        try:
            base = load_base(BaseConfig(path=name, dtype="float32", device="cpu"))
        except UserError as error:
            message = str(error).replace(name, "FOLDER")
            return Outcome("more than one line" if "\n" in message else "refused", message)
        except Exception:
            return Outcome("a traceback at load", traceback.format_exc(limit=-3))
        prompts = [[token % base.vocab_size for token in prompt][: base.max_length - 1] for prompt in _PROMPTS]
        try:
            assert model is not None, "from_pretrained failed"
            expected = [greedy(model, prompt, base.eos_ids, base.max_length) for prompt in prompts]
        except Exception:
            return Outcome("let in, and transformers fails", traceback.format_exc(limit=-2))
        try:
            return compared(base, model, prompts, expected, random.Random(seed))
        except UserError as error:
            return Outcome("refused after loading", str(error))
        except Exception:
            return Outcome("a traceback in decoding", traceback.format_exc(limit=-3))


def compared(
    base: Base, model: PreTrainedModel, prompts: list[list[int]], expected: list[list[int]], rng: random.Random
) -> Outcome:
    for way, engine in engines(base, rng):
        found = [answer.ids for answer in engine.generate(prompts, _NEW_TOKENS)]
        for prompt, wanted, ids in zip(prompts, expected, found, strict=True):
            if ids != wanted and not is_near_tie(model, prompt, wanted, ids):
                return Outcome("another text", f"{way}: {ids} for {wanted}")
    return Outcome("equal")


def is_near_tie(model: PreTrainedModel, prompt: list[int], wanted: list[int], found: list[int]) -> bool:
    """Whether the two part where two logits are equal but for rounding."""
    places = [place for place, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b]
    return bool(places) and gap(model, prompt + wanted[: places[0]]) < 1e-4


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    transformers.logging.set_verbosity(level)


def main(num: int, seed: int, families: list[str]) -> None:
    kinds: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for number in range(num):
        rng = random.Random(f"{seed} {number}")
        family = rng.choice(families)
        config = tiny_config(family).to_dict()
        changes: Changes = {}
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            changes |= any_change(rng, config)
        generation = one_of(rng, GENERATION) if rng.random() < 0.15 else {}
        outcome = check_case(family, changes, generation, number)
        kinds[outcome.kind] += 1
        if outcome.kind == "refused":
            refused[outcome.detail] += 1
        elif outcome.kind != "equal":
            print(f"{family} {changes} {generation}: {outcome.kind}: {outcome.detail}\n", flush=True)
    for message, times in refused.most_common():
        print(f"{times} x {message}")
    print(dict(kinds))
    sys.exit(bool(kinds.keys() - {"equal", "refused"}))


if __name__ == "__main__":
    with quiet():
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or sorted(SUPPORTED))
