"""What should have been written? The slow reference: the whole text again for every token.

transformers' eager attention and causal mask, no cache, no tree, no batch; only the noise is the product's own,
because it decides what a seed means. Not a test file itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from random_models import twin
from transformers import PreTrainedModel

from euryale.decoding.noise import gumbel
from euryale.model.base import Base


class Request(NamedTuple):
    """One row of a batch and how it is to be continued."""

    prompt: list[int]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


class Answer(NamedTuple):
    ids: list[int]
    finish_reason: str


def next_scores(model: PreTrainedModel, ids: list[int], request: Request) -> list[float]:
    """Scores whose argmax is the next token: logits, or scaled and filtered logits plus the noise of the position."""
    with torch.inference_mode():
        logits_V = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    if request.temperature == 0.0:
        return logits_V.tolist()
    scores_V = logits_V.float() / request.temperature
    noise_V = gumbel(request.seed, len(ids), 1, len(scores_V), scores_V.device)[0]
    kept = top_p_by_hand(scores_V.tolist(), request.top_p)
    return [score if token in kept else -math.inf for token, score in enumerate((scores_V + noise_V).tolist())]


def top_p_by_hand(scores: list[float], top_p: float) -> set[int]:
    weights = [math.exp(score - max(scores)) for score in scores]
    kept: set[int] = set()
    share = 0.0
    for token in sorted(range(len(scores)), key=lambda token: -scores[token]):
        if share >= top_p:
            break
        kept.add(token)
        share += weights[token] / sum(weights)
    return kept


def answer_slowly(model: PreTrainedModel, base: Base, request: Request) -> Answer:
    """Plain decoding, the whole text again for every token."""
    ids = list(request.prompt)
    while True:
        scores = next_scores(model, ids, request)
        ids.append(scores.index(max(scores)))
        if ids[-1] in base.eos_ids:
            return Answer(ids[len(request.prompt) :], "eos")
        if len(ids) - len(request.prompt) == request.max_new_tokens:
            return Answer(ids[len(request.prompt) :], "length")
        if len(ids) == base.max_length:
            return Answer(ids[len(request.prompt) :], "context")


def answer_with_generate(model: PreTrainedModel, base: Base, request: Request) -> list[int]:
    """transformers' own greedy decoding, with its cache, of one prompt."""
    prompt_1T = torch.tensor([request.prompt])
    with torch.inference_mode():
        out = model.generate(
            prompt_1T,
            attention_mask=torch.ones_like(prompt_1T),
            do_sample=False,
            max_new_tokens=min(request.max_new_tokens, base.max_length - len(request.prompt)),
            eos_token_id=list(base.eos_ids) or None,
            pad_token_id=0,
        )
    return out[0, len(request.prompt) :].tolist()


def gap_at_divergence(model: PreTrainedModel, request: Request, expected: list[int], found: list[int]) -> float:
    same = 0
    while same < min(len(expected), len(found)) and expected[same] == found[same]:
        same += 1
    best = sorted(next_scores(model, request.prompt + expected[:same], request), reverse=True)
    return best[0] - best[1]


def slow_ids(
    base: Base, prompt: Sequence[int], max_new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> list[int]:
    """The ids of one answer, for tests that compare nothing else."""
    return answer_slowly(twin(base), base, Request(list(prompt), max_new_tokens, temperature, 1.0, seed)).ids
