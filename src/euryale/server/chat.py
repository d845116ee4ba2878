"""How a generation is told in the shape of /v1/chat/completions, at once or as events of a stream."""

from typing import Any

from euryale.server.answers import (
    ChatAnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    Usage,
)
from euryale.server.backend import BackendInfo
from euryale.server.collector import News
from euryale.server.figures import euryale_of, metrics_of, usage_of
from euryale.server.generation import Generation
from euryale.server.logprobs import TextOf, chat_logprobs
from euryale.server.schemas import ChatRequest, StreamOptions


class ChatWriter:
    """Makes the answer, or the events of a stream, of one request."""

    def __init__(
        self, request: ChatRequest, generation: Generation, info: BackendInfo, head: dict[str, Any], text_of: TextOf
    ) -> None:
        """head: id, time and model, which open every event."""
        self._request = request
        self._generation = generation
        self._info = info
        self._head = head
        self._text_of = text_of
        self._options = request.stream_options or StreamOptions()
        self._has_begun = [False] * len(generation.sequences)

    def events(self, index: int, news: News) -> list[ChatChunk]:
        """What a stream says of news: visible text, and the end in an event of its own.

        The role comes with the first text, because clients take the first event for the first token.
        """
        events = []
        shows_tokens = self._request.logprobs or self._request.return_token_ids
        is_first = not self._has_begun[index]
        if news.text or (news.ids and shows_tokens) or (is_first and news.ending):
            self._has_begun[index] = True
            delta = ChatDelta(role="assistant", content=news.text) if is_first else ChatDelta(content=news.text)
            choice = ChatChunkChoice(index=index, delta=delta, logprobs=self._logprobs(news), finish_reason=None)
            if self._request.return_token_ids:
                choice.token_ids = news.ids
            events.append(self._event(choice))
            if self._request.return_token_ids and is_first:
                events[0].prompt_token_ids = self._generation.plan.prompts[0]
        if news.ending:
            reason = news.ending.shown_reason
            choice = ChatChunkChoice(index=index, delta=ChatDelta(), logprobs=None, finish_reason=reason)
            events.append(self._event(choice))
            if self._generation.is_finished and not self._options.include_usage:
                self._add_figures(events[-1])
        return events

    def last_events(self) -> list[ChatChunk]:
        """The usage, where it was asked for."""
        if not self._options.include_usage:
            return []
        event = ChatChunk(**self._head, choices=[], usage=self._usage())
        self._add_figures(event)
        return [event]

    def answer(self) -> ChatCompletion:
        """The whole, once all sequences have ended."""
        choices = []
        for index, written in enumerate(self._generation.sequences):
            news = written.as_news()
            assert news.ending is not None, "all have ended"
            message = ChatAnswerMessage(role="assistant", content=news.text, refusal=None)
            choice = ChatChoice(
                index=index,
                message=message,
                logprobs=self._logprobs(news),
                finish_reason=news.ending.shown_reason,
            )
            if self._request.return_token_ids:
                choice.token_ids = news.ids
            choices.append(choice)
        answer = ChatCompletion(**self._head, choices=choices, usage=self._usage())
        if self._request.return_token_ids:
            answer.prompt_token_ids = self._generation.plan.prompts[0]
        self._add_figures(answer)
        return answer

    def _event(self, choice: ChatChunkChoice) -> ChatChunk:
        event = ChatChunk(**self._head, choices=[choice])
        if self._options.include_usage:
            event.usage = self._usage() if self._options.continuous_usage_stats else None
        return event

    def _logprobs(self, news: News) -> ChatLogprobs | None:
        return chat_logprobs(news.logprobs, self._text_of) if self._request.logprobs else None

    def _add_figures(self, event: ChatChunk | ChatCompletion) -> None:
        event.metrics = metrics_of(self._generation, self._info)
        event.euryale = euryale_of(self._generation, self._info)

    def _usage(self) -> Usage:
        return usage_of(self._generation)
