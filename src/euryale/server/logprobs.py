"""Log-probabilities in the two shapes of OpenAI's API: of /v1/completions and of /v1/chat/completions."""

from collections.abc import Callable, Sequence

from euryale.decoding.record import TokenLogprob
from euryale.server.answers import ChatLogprobs, ChatToken, CompletionLogprobs, RankedToken

LEAST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's servers write this number
TextOf = Callable[[int], str]


def completion_logprobs(
    positions: Sequence[tuple[int, TokenLogprob | None]], text_of: TextOf, first_offset: int = 0
) -> CompletionLogprobs:
    """positions: each token with its logprobs; None of a text's first token, which nothing predicts.

    first_offset: characters of the answer before the first of them.
    """
    tokens = [text_of(token) for token, _ in positions]
    offsets, offset = [], first_offset
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[None if seen is None else _finite(seen.logprob) for _, seen in positions],
        top_logprobs=[None if seen is None else _top(seen, text_of) for _, seen in positions],
        text_offset=offsets,
    )


def chat_logprobs(positions: Sequence[TokenLogprob], text_of: TextOf) -> ChatLogprobs:
    content = []
    for seen in positions:
        written = _ranked(seen.token, seen.logprob, text_of)
        top = [_ranked(token, logprob, text_of) for token, logprob in seen.top]
        content.append(ChatToken(**written.model_dump(), top_logprobs=top))
    return ChatLogprobs(content=content, refusal=None)


def _top(seen: TokenLogprob, text_of: TextOf) -> dict[str, float]:
    """The ranked tokens, and the written one where it is not among them. Of equal texts the likelier one stays."""
    top: dict[str, float] = {}
    for token, logprob in [*seen.top, (seen.token, seen.logprob)]:
        top.setdefault(text_of(token), _finite(logprob))
    return top


def _ranked(token: int, logprob: float, text_of: TextOf) -> RankedToken:
    text = text_of(token)
    is_whole = "\ufffd" not in text  # else its bytes are a part of a character
    return RankedToken(token=text, logprob=_finite(logprob), bytes=list(text.encode()) if is_whole else None)


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
