"""The slow reference of decoding: the whole text again for every token.

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

from euryale.base.base import Base
from euryale.decoding.noise import gumbel
from euryale.decoding.request import StopConditions
from euryale.decoding.sampling import Sampling


class Request(NamedTuple):
    """One row of a batch and how it is to be continued."""

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    seed: int
    ends: StopConditions = StopConditions()  # without the base's own end-of-text ids when they are to be ignored


class Answer(NamedTuple):
    ids: list[int]
    finish_reason: str
    text: str


def logits_after(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """[T, V]: of the token that follows each of them."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def next_scores(
    model: PreTrainedModel, ids: list[int], request: Request, logits_V: torch.Tensor | None = None
) -> list[float]:
    """Scores whose argmax is the next token: logits, or scaled and filtered logits plus the noise of the position."""
    if logits_V is None:
        logits_V = logits_after(model, ids)[-1]
    sampling = request.sampling
    processed = process_by_hand(logits_V.tolist(), ids, request)
    if sampling.temperature == 0.0:
        return processed
    scores_V = torch.tensor(processed, dtype=torch.float64).float() / sampling.temperature
    noise_V = gumbel(request.seed, len(ids), 1, len(scores_V), scores_V.device)[0]
    kept = filter_by_hand(scores_V.tolist(), sampling)
    return [score if token in kept else -math.inf for token, score in enumerate((scores_V + noise_V).tolist())]


def process_by_hand(scores: list[float], ids: list[int], request: Request) -> list[float]:
    """Token by token: bias, repetition penalty, presence and frequency penalty, bans, least length."""
    sampling, answer = request.sampling, ids[len(request.prompt) :]
    for token in range(len(scores)):
        scores[token] += sampling.logit_bias.get(token, 0.0)
        if token in ids:
            penalty = sampling.repetition_penalty
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
        if token in answer:
            scores[token] -= sampling.frequency_penalty * answer.count(token) + sampling.presence_penalty
        for *before, last in sampling.banned_words():
            if token == last and len(before) <= len(ids) and ids[len(ids) - len(before) :] == before:
                scores[token] = -math.inf
        if token in request.ends.ids and len(answer) < sampling.min_new_tokens:
            scores[token] = -math.inf
    return scores


def filter_by_hand(scores: list[float], sampling: Sampling) -> set[int]:
    """The tokens that may be drawn: top-k, of these top-p, of these min-p."""
    order = sorted((token for token in range(len(scores)) if scores[token] > -math.inf), key=lambda t: -scores[t])
    if 0 < sampling.top_k < len(order):
        order = [token for token in order if scores[token] >= scores[order[sampling.top_k - 1]]]
    weights = {token: math.exp(scores[token] - scores[order[0]]) for token in order}
    kept: set[int] = set()
    share = 0.0
    for token in order:
        if share >= sampling.top_p:
            break
        kept.add(token)
        share += weights[token] / sum(weights.values())
    return {token for token in kept if weights[token] >= sampling.min_p}


def answer_slowly(model: PreTrainedModel, base: Base, request: Request, guess: Sequence[int] = ()) -> Answer:
    """Plain decoding, the whole text again for every token; one token is one character (letter_tokenizer).

    `guess` is what may come of it: one pass over it gives the logits after each beginning of it, and a token that is
    not the guessed one ends their use.
    """
    ids, new = list(request.prompt), len(request.prompt)
    guessed = [*request.prompt, *guess]
    logits_TV = logits_after(model, guessed) if guess else None
    while True:
        is_known = logits_TV is not None and ids == guessed[: len(ids)]
        scores = next_scores(model, ids, request, logits_TV[len(ids) - 1] if is_known else None)
        ids.append(scores.index(max(scores)))
        text = base.tokenizer.decode(ids[new:])
        # Only a string that ends after the least length counts.
        first = {s: max(0, request.sampling.min_new_tokens + 1 - len(s)) for s in request.ends.strings}
        stops = [text.index(string, start) for string, start in first.items() if string in text[start:]]
        if ids[-1] in request.ends.ids:
            return Answer(ids[new:], "eos" if ids[-1] in request.ends.eos_ids else "stop", text[:-1])
        if stops:
            return Answer(ids[new:], "stop", text[: min(stops)])
        if len(ids) - new == request.max_new_tokens:
            return Answer(ids[new:], "length", text)
        if len(ids) == base.max_length:
            return Answer(ids[new:], "context", text)


def can_generate(request: Request) -> bool:
    """Whether transformers' `generate` has all of it; a stop string would need its tokenizer."""
    single_bans = {word[0] for word in request.sampling.banned_words() if len(word) == 1}
    is_known = request.sampling.is_known_to_transformers and not request.ends.strings
    return request.sampling.temperature == 0.0 and is_known and not single_bans & set(request.ends.ids)


def answer_with_generate(model: PreTrainedModel, base: Base, request: Request) -> list[int]:
    """transformers' own greedy decoding, with its cache and its processors, of one prompt."""
    prompt_1T = torch.tensor([request.prompt])
    sampling = request.sampling
    how: dict[str, object] = {"repetition_penalty": sampling.repetition_penalty}
    if sampling.logit_bias:
        how["sequence_bias"] = [[[token], float(bias)] for token, bias in sampling.logit_bias.items()]
    if sampling.banned_tokens:
        how["bad_words_ids"] = [list(word) for word in sampling.banned_words()]
    if sampling.min_new_tokens and request.ends.ids:
        how["min_new_tokens"] = sampling.min_new_tokens
    with torch.inference_mode():
        out = model.generate(
            prompt_1T,
            attention_mask=torch.ones_like(prompt_1T),
            do_sample=False,
            max_new_tokens=min(request.max_new_tokens, base.max_length - len(request.prompt)),
            eos_token_id=list(request.ends.ids) or None,
            pad_token_id=0,
            **how,
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
    request = Request(list(prompt), max_new_tokens, Sampling(temperature), seed, StopConditions(eos_ids=base.eos_ids))
    return answer_slowly(twin(base), base, request).ids
