"""How a generation is told in the shape of /v1/completions, at once or as events of a stream."""

from typing import Any

from euryale.decoding.record import TokenLogprob
from euryale.server.answers import Completion, CompletionChoice, Usage
from euryale.server.backend import BackendInfo
from euryale.server.collector import News
from euryale.server.figures import euryale_of, metrics_of, usage_of
from euryale.server.generation import Generation
from euryale.server.logprobs import TextOf, completion_logprobs
from euryale.server.schemas import CompletionRequest, StreamOptions


class CompletionWriter:
    """Makes the answer, or the events of a stream, of one request."""

    def __init__(
        self,
        request: CompletionRequest,
        generation: Generation,
        info: BackendInfo,
        head: dict[str, Any],
        prompt_texts: list[str],
        text_of: TextOf,
    ) -> None:
        """head: id, time and model, which open every event. prompt_texts: what `echo` repeats."""
        self._request = request
        self._generation = generation
        self._info = info
        self._head = head
        self._prompt_texts = prompt_texts
        self._text_of = text_of
        self._options = request.stream_options or StreamOptions()
        self._offsets = [0] * len(generation.sequences)  # characters of the tokens told of each choice
        self._has_begun = [False] * len(generation.sequences)

    def events(self, index: int, news: News) -> list[Completion]:
        """What a stream says of news; nothing while no text became visible."""
        shows_tokens = self._request.logprobs is not None or self._request.return_token_ids
        if not (news.text or news.ending or (news.ids and shows_tokens)):
            return []
        event = Completion(**self._head, choices=[self._choice(index, news)])
        if self._options.include_usage:
            event.usage = self._usage() if self._options.continuous_usage_stats else None
        elif self._generation.is_finished and news.ending:
            self._add_figures(event)
        return [event]

    def last_events(self) -> list[Completion]:
        """The usage, where it was asked for."""
        if not self._options.include_usage:
            return []
        event = Completion(**self._head, choices=[], usage=self._usage())
        self._add_figures(event)
        return [event]

    def answer(self) -> Completion:
        """The whole, once all sequences have ended."""
        choices = [self._choice(index, written.as_news()) for index, written in enumerate(self._generation.sequences)]
        answer = Completion(**self._head, choices=choices, usage=self._usage())
        self._add_figures(answer)
        return answer

    def _choice(self, index: int, news: News) -> CompletionChoice:
        """The first of a choice repeats the prompt, where it is echoed."""
        plan = self._generation.plan
        prompt = plan.prompts[plan.prompt_of(index)]
        is_first, self._has_begun[index] = not self._has_begun[index], True
        text = news.text
        positions: list[tuple[int, TokenLogprob | None]] = [(seen.token, seen) for seen in news.logprobs]
        if is_first and self._request.echo:
            text = self._prompt_texts[plan.prompt_of(index)] + text
            if news.prompt_logprobs is not None:
                positions = [*zip(prompt, news.prompt_logprobs, strict=True), *positions]
        choice = CompletionChoice(
            index=index,
            text=text,
            logprobs=None,
            finish_reason=news.ending.shown_reason if news.ending else None,
        )
        if self._request.logprobs is not None:
            choice.logprobs = completion_logprobs(positions, self._text_of, self._offsets[index])
            self._offsets[index] += sum(map(len, choice.logprobs.tokens))
        if self._request.return_token_ids:
            choice.token_ids = news.ids
            if is_first:
                choice.prompt_token_ids = prompt
        return choice

    def _add_figures(self, event: Completion) -> None:
        event.metrics = metrics_of(self._generation, self._info)
        event.euryale = euryale_of(self._generation, self._info)

    def _usage(self) -> Usage:
        return usage_of(self._generation)
