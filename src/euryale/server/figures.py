"""The numbers that go with an answer: tokens, times, and what drafting brought."""

from collections.abc import Sequence

from euryale.server.answers import EuryaleInfo, PromptDetails, RequestMetrics, SpeculativeDecoding, Usage
from euryale.server.backend import BackendInfo, Ending
from euryale.server.generation import Generation


def usage_of(generation: Generation) -> Usage:
    """Each prompt counts once, however many choices it has. What was cached is known when all choices have ended."""
    plan, sequences = generation.plan, generation.sequences
    num_prompt, num_written = sum(map(len, plan.prompts)), sum(len(written.ids) for written in sequences)
    usage = Usage(prompt_tokens=num_prompt, completion_tokens=num_written, total_tokens=num_prompt + num_written)
    firsts = [written.ending for written in sequences[:: plan.num_choices]]
    if generation.is_finished:
        num_cached = sum(ending.num_cached for ending in firsts if ending is not None)
        usage.prompt_tokens_details = PromptDetails(cached_tokens=num_cached)
    return usage


def metrics_of(generation: Generation, info: BackendInfo) -> RequestMetrics:
    """Of all sequences: the first token of any, the longest wait, all tokens over the time from first to last."""
    timings = [sequence.timing for sequence in generation.sequences]
    endings = [sequence.ending for sequence in generation.sequences if sequence.ending is not None]
    submitted = min((timing.submitted for timing in timings), default=0.0)
    firsts = [timing.first_token for timing in timings if timing.first_token is not None]
    admitted = [timing.admitted for timing in timings if timing.admitted is not None]
    ended = [timing.ended for timing in timings if timing.ended is not None]
    seconds = max(ended) - min(admitted) if ended and admitted else 0.0
    num_tokens = sum(len(ending.ids) for ending in endings)
    return RequestMetrics(
        time_to_first_token_ms=_ms(min(firsts) - submitted) if firsts else None,
        queue_time_ms=_ms(max(admitted) - submitted) if admitted else 0.0,
        tokens_per_second=round(num_tokens / seconds, 3) if seconds > 0 else None,
        speculative_decoding=None if info.drafter == "none" else speculation_of(endings, info.max_depth),
    )


def euryale_of(generation: Generation, info: BackendInfo) -> EuryaleInfo:
    endings = [sequence.ending for sequence in generation.sequences if sequence.ending is not None]
    num_steps = sum(len(ending.accepted) for ending in endings)
    return EuryaleInfo(
        tau=round(sum(len(ending.ids) for ending in endings) / num_steps, 3) if num_steps else None,
        seed=generation.plan.seed,
        is_lossless=all(ending.is_lossless for ending in endings),
        drafter=info.drafter,
    )


def speculation_of(endings: Sequence[Ending], max_depth: int) -> SpeculativeDecoding:
    """Steps without drafts count as steps that accepted none; the bonus token is not a drafted one."""
    accepted = [gained - 1 for ending in endings for gained in ending.accepted if gained]
    num_drafted = sum(nodes - 1 for ending in endings for nodes in ending.nodes)
    num_accepted = sum(accepted)
    histogram = [0] * (max_depth + 1)
    for count in accepted:
        histogram[min(count, max_depth)] += 1
    return SpeculativeDecoding(
        mean_acceptance_length=round(1 + num_accepted / len(accepted), 4) if accepted else 1.0,
        draft_acceptance_rate=round(num_accepted / num_drafted, 4) if num_drafted else 0.0,
        acceptance_histogram=histogram,
        num_spec_steps=len(accepted),
        num_accepted_draft_tokens=num_accepted,
        num_draft_tokens=num_drafted,
        num_spec_tokens=max_depth,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
