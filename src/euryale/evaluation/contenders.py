"""Contenders of a benchmark, and what is timed of an answer.

Everything from the prompt's token ids to the answer's text: the memory for keys and values, the prompt's own pass, the
steps, and turning ids into text, for every contender alike. What prepares a turn (lending the model to transformers,
seeding) happens before the clock starts.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.evaluation.config import LLAMA_CPP
from euryale.evaluation.hf_baselines import count_new, generate_ids, generation_settings, transformers_attention
from euryale.evaluation.llama_cpp import LlamaCpp
from euryale.system.memory import Peak

PROMPT_LOOKUP_TOKENS = 10  # candidates a step, the number in transformers' own documentation


class Turn(NamedTuple):
    """One contender's answer to one prompt. What only our own engine knows is None for others."""

    ids: list[int]  # new ones, as `count_new` counts
    seconds: float
    accepted: list[int] | None = None  # tokens gained by each step
    nodes: list[int] | None = None  # that each step verified
    part_seconds: dict[str, float] | None = None  # of each part of a step, and of the prompt ("prefill")
    peak: Peak | None = None  # of memory; filled in where contenders take turns
    passes: int | None = None  # forwards of the base, where a turn is more than one answer; else one a step


Contender = Callable[[list[int], int], Turn]  # (prompt, seed) -> answer
Builder = Callable[[Engine, Sampling, int], Contender]  # (engine, how tokens are drawn, max_new_tokens)


def _own(drafts: bool) -> Builder:
    """Our engine as it was given, or without drafts."""

    def build(given: Engine, sampling: Sampling, max_new_tokens: int) -> Contender:
        engine = given if drafts else Engine(given.base, drafter="none")

        def answer(prompt: list[int], seed: int) -> Turn:
            before = dict(engine.seconds)
            start = time.perf_counter()
            [generation] = engine.generate([prompt], max_new_tokens, seed=seed, **sampling.keywords())
            seconds = time.perf_counter() - start
            parts = {part: total - before[part] for part, total in engine.seconds.items()}
            new = count_new(generation.ids, 0, engine.base.eos_ids, max_new_tokens)
            return Turn(new, seconds, generation.accepted, generation.nodes, parts)

        return answer

    return build


def _hf(**extra: object) -> Builder:
    """transformers' `generate` on the same model; `extra` goes into its generation config."""

    def build(engine: Engine, sampling: Sampling, max_new_tokens: int) -> Contender:
        base = engine.base
        settings = generation_settings(base, sampling, max_new_tokens, **extra)
        devices = [base.device] if base.device.type == "cuda" else []

        def answer(prompt: list[int], seed: int) -> Turn:
            with transformers_attention(base) as model, torch.random.fork_rng(devices):
                torch.manual_seed(seed)
                start = time.perf_counter()
                ids = generate_ids(model, prompt, settings)
                base.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
                seconds = time.perf_counter() - start
            return Turn(count_new(ids, len(prompt), base.eos_ids, max_new_tokens), seconds)

        return answer

    return build


def _llama_cpp(engine: Engine, sampling: Sampling, max_new_tokens: int) -> Contender:
    """llama.cpp on the base's own GGUF file, with as many threads."""
    server = LlamaCpp(engine.base, max_new_tokens, torch.get_num_threads())

    def answer(prompt: list[int], seed: int) -> Turn:
        start = time.perf_counter()
        ids = server.answer(prompt)
        seconds = time.perf_counter() - start
        return Turn(count_new(ids, 0, engine.base.eos_ids, max_new_tokens), seconds)

    return answer


CONTENDERS: dict[str, Builder] = {
    "euryale": _own(drafts=True),
    "ar": _own(drafts=False),
    "hf_generate": _hf(),
    "hf_generate_static": _hf(cache_implementation="static"),
    "hf_prompt_lookup": _hf(prompt_lookup_num_tokens=PROMPT_LOOKUP_TOKENS),
    LLAMA_CPP: _llama_cpp,
}
