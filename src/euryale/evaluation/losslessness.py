"""Test of losslessness, token by token: whether a token is the base's own choice, and if not, by how much it lost.

In float32 two ways of computing the same logits agree to about 1e-5, and text differs only at a tie. In bfloat16 and
float16 they differ by units in the last place, so near ties fall either way in any engine. Then the claim that can be
checked is: at every place, with everything before it given, the emitted token is the base's own choice, or its
score lies within a stated gap of the best.

Letters: T new tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from euryale.base.base import Base
from euryale.base.compiled_llama import CompiledLlama
from euryale.decoding.grammar import grammar_of
from euryale.decoding.logits_processors import LogitsProcessors
from euryale.decoding.noise import gumbel
from euryale.decoding.sampling import Sampling
from euryale.decoding.sampling_batch import SamplingBatch, warp
from euryale.decoding.tree.tree import Shape

ULPS = 4  # units in the last place of the dtype, at the size of the place's largest logit
_CHUNK = 128  # places whose scores over the vocabulary exist at a time


class Places(NamedTuple):
    """What the base thinks of each emitted token, given all before it. One entry a new token."""

    emitted_gap: list[float]  # best score less the emitted token's; 0 where they are one
    top2_gap: list[float]  # best score less the second best
    gap_limit: list[float]  # how far apart rounding alone may put two scores here


class Divergence(NamedTuple):
    """The first place at which two answers to one prompt differ."""

    prompt: int
    position: int  # among the new tokens
    token: int | None  # ours; None where our answer had ended
    other: int | None
    top2_gap: float | None  # the base's own, at that place; None after the end of our answer
    emitted_gap: float | None


@torch.inference_mode()
def judge(base: Base, prompt: Sequence[int], new: Sequence[int], sampling: Sampling, seed: int) -> Places:
    """Teacher-forces an answer through the base in one causal pass.

    Scores are the processed logits at T = 0, else those / T, filtered, plus the noise of (seed, position, token).
    """
    known = [*prompt, *new[:-1]]
    hidden_TD, logits_of = _states(base, known)
    hidden_TD = hidden_TD[len(prompt) - 1 :]
    new_T = torch.tensor(list(new), device=base.device)
    processors = LogitsProcessors(1, base.vocab_size, base.device)
    places = Places([], [], [])
    for start in range(0, len(new), _CHUNK):
        part = slice(start, start + _CHUNK)
        logits_TV = logits_of(hidden_TD[part]).float()
        if sampling.is_processed:
            grammar = grammar_of(base, sampling, base.eos_ids)
            if grammar is not None:
                for token in new[:start]:
                    grammar.accept(token)
            processors.add(0, sampling, prompt, base.eos_ids, grammar)
            logits_TV = _processed(processors, logits_TV, prompt, new, start)
        scores_TV = _scores(logits_TV, sampling, seed, len(prompt) + start)
        best_T2 = scores_TV.topk(2).values
        emitted_T = scores_TV.gather(1, new_T[part, None])[:, 0]
        places.emitted_gap.extend((best_T2[:, 0] - emitted_T).tolist())
        places.top2_gap.extend((best_T2[:, 0] - best_T2[:, 1]).tolist())
        largest_T = logits_TV.masked_fill(logits_TV == -math.inf, 0.0).abs().amax(-1)
        places.gap_limit.extend(_rounding(largest_T, base.dtype, sampling.temperature).tolist())
    return places


def _states(base: Base, ids: list[int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The final states [T, D] of a text, and what makes logits of them: transformers, but for int4 of its own weights,
    which are another base."""
    if base.quantization == "int4":
        forward = base.forward()
        assert isinstance(forward, CompiledLlama)
        return forward.read_sample(ids)[0], forward.logits
    ids_1T = torch.tensor([ids], device=base.device)
    positions_1T = torch.arange(len(ids), device=base.device)[None]
    return base.forward_packed(ids_1T, positions_1T, torch.zeros_like(ids_1T))[0], base.logits


def _processed(
    processors: LogitsProcessors,
    logits_TV: Tensor,
    prompt: Sequence[int],
    new: Sequence[int],
    start: int,
) -> Tensor:
    """A text is a tree without branches: every token is a node, below the one before it."""
    T, device = len(logits_TV), logits_TV.device
    processors.extend([new[:start]])
    text = [*prompt, *new[: start + T - 1]]
    depths_1T = torch.arange(T, device=device)[None]
    causal_1TT = torch.ones(1, T, T, dtype=torch.bool, device=device).tril()
    chain = Shape((depths_1T - 1).clamp(min=0), depths_1T, causal_1TT)
    tokens_1T = torch.tensor([text[-T:]], device=device)
    return processors.apply(logits_TV[None], tokens_1T, chain, [text[: len(prompt) + start]])[0]


def _scores(logits_TV: Tensor, sampling: Sampling, seed: int, first_position: int) -> Tensor:
    if sampling.temperature == 0:
        return logits_TV
    scores_TV = warp(logits_TV[None], SamplingBatch.of([sampling], logits_TV.device))[0]
    T, V = scores_TV.shape
    return scores_TV + gumbel(seed, first_position, T, V, scores_TV.device)


def _rounding(largest_T: Tensor, dtype: torch.dtype, temperature: float) -> Tensor:
    """ULPS units in the last place of numbers of this size, in units of the scores."""
    exponent_T = largest_T.clamp(min=torch.finfo(torch.float32).tiny).log2().floor()
    return ULPS * torch.finfo(dtype).eps * exponent_T.exp2() / (temperature or 1.0)


def first_divergence(index: int, ours: Sequence[int], other: Sequence[int], places: Places) -> Divergence | None:
    """Where our answer to prompt number `index` leaves the other; None when they are equal.

    Up to there both were given the same tokens, so the base's scores there are the other's as well.
    """
    if list(ours) == list(other):
        return None
    shorter = min(len(ours), len(other))
    at = next((i for i in range(shorter) if ours[i] != other[i]), shorter)
    is_ours, is_other = at < len(ours), at < len(other)
    return Divergence(
        prompt=index,
        position=at,
        token=ours[at] if is_ours else None,
        other=other[at] if is_other else None,
        top2_gap=places.top2_gap[at] if is_ours else None,
        emitted_gap=places.emitted_gap[at] if is_ours else None,
    )


def summarise(judged: Sequence[Places]) -> dict[str, Any]:
    """Shares of emitted tokens that were the base's choice, and that were within the gap; the worst gap of all.

    A token outside of top-p has no finite gap: it is outside of the limit, and not in the worst gap.
    """
    gaps = [pair for places in judged for pair in zip(places.emitted_gap, places.gap_limit, strict=True)]
    finite = [(gap, ULPS * gap / limit) for gap, limit in gaps if math.isfinite(gap)]
    return {
        "num_tokens": len(gaps),
        "base_choice_share": sum(gap == 0 for gap, _ in gaps) / len(gaps),
        "within_gap_share": sum(gap <= limit for gap, limit in gaps) / len(gaps),
        "gap_limit_ulps": ULPS,
        "worst_gap": max(gap for gap, _ in finite),
        "worst_gap_ulps": max(ulps for _, ulps in finite),
    }
