"""Grammars that an answer must fit, from a JSON schema or a regular expression, followed token by token.

The package llguidance (extra `grammar`) reads the answer's bytes and knows which tokens may come next. An answer ends
where nothing can follow; where it may end and may go on, its end tokens are allowed beside those of the grammar.
https://github.com/guidance-ai/llguidance

Letters: V vocabulary.
"""

import copy
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from euryale.base.base import Base
from euryale.decoding.grammar_syntax import asked, cut, read_grammar, refusal
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Allowed = NDArray[np.bool_]  # [V]: the tokens that may follow
_END = "<|end of a grammar|>"
_UNREADABLE = (
    "json_schema and regex need a tokenizer whose tokens are bytes (byte-level BPE, or pieces with byte fallback); got "
    "{}. Leave them out."
)


def grammar_of(base: Base, sampling: Sampling, end_ids: Collection[int]) -> "GrammarState | None":
    """The grammar of these settings before the first token; None where they name none.

    end_ids: the tokens that end the answer. Raises UserError: a schema or an expression that llguidance cannot follow,
    a tokenizer whose tokens it cannot read as bytes, the package is not installed.
    """
    if sampling.json_schema is None and sampling.regex is None:
        return None
    start = check_grammar(base.tokenizer, sampling)
    return GrammarState(start, min(len(base.tokenizer), base.vocab_size), base.vocab_size, end_ids)


def check_grammar(tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> "LLMatcher":
    """The grammar's automaton, made once for equal settings. Any thread may call it. Raises what grammar_of raises."""
    name, text = asked(sampling)
    matcher = _compiled(tokenizer, len(tokenizer), name, text)
    if matcher.is_error():
        raise refusal(name, matcher.get_error())
    return matcher


class GrammarState:
    """Where one answer stands in its grammar."""

    def __init__(self, start: "LLMatcher", num_tokens: int, vocab_size: int, end_ids: Collection[int]) -> None:
        """start: the automaton before the first token; it is copied. num_tokens: that have text; a base's vocabulary
        may have more."""
        self.error: str | None = None  # why the grammar can no longer be followed
        self._start = start
        self._matcher = start.deep_copy()
        self._num_tokens = num_tokens
        self._vocab_size = vocab_size
        self._end_ids = sorted(end_ids)
        self._ids: list[int] = []
        self._next: Allowed | None = None  # after _ids; computed when it is asked for

    def accept(self, token: int) -> bool:
        """Takes a token that is part of the answer. True: nothing can follow it, the answer is whole."""
        self._ids.append(token)
        self._next = None
        self._matcher.consume_token(token)
        allowed = self.next()
        self.error = _reason(self._matcher) or None
        return self._is_whole(allowed)

    def next(self) -> Allowed:
        """The tokens that may follow the answer so far; none where it is whole, or can no longer be followed."""
        if self._next is None:
            self._next = self._allowed()
        return self._next

    def after_nodes(self, tokens: Sequence[int], parents: Sequence[int]) -> dict[int, Allowed]:
        """What may follow each node of a tree whose root is the last token of the text; parents[i] < i.

        Nodes that the grammar refuses are left out, because they are never accepted, and so are nodes that end the
        answer, because nothing is read of what follows them.
        """
        children: list[list[int]] = [[] for _ in tokens]
        for node in range(1, len(tokens)):
            children[parents[node]].append(node)
        found: dict[int, Allowed] = {}
        self._visit(0, self.next(), [], tokens, children, found)
        return found

    def _visit(
        self,
        node: int,
        allowed: Allowed,
        path: list[int],
        tokens: Sequence[int],
        children: Sequence[Sequence[int]],
        found: dict[int, Allowed],
    ) -> None:
        """Goes down from a node whose path the automaton has read, and leaves the automaton as it was."""
        if self._is_whole(allowed):
            return
        found[node] = allowed
        for child in children[node]:
            token = tokens[child]
            if not allowed[token] or token in self._end_ids:
                continue
            below = [*path, token]
            if self._matcher.consume_token(token):
                self._visit(child, self._allowed(), below, tokens, children, found)
            else:
                found[child] = np.zeros(self._vocab_size, np.bool_)
            if self._matcher.is_error() or not self._matcher.rollback(1):
                # It ran into one of llguidance's bounds, and never leaves that state.
                self._matcher = self._start.deep_copy()
                self._matcher.consume_tokens([*self._ids, *path])

    def _allowed(self) -> Allowed:
        allowed = np.zeros(self._vocab_size, np.bool_)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if not self._matcher.is_error():
            allowed[: self._num_tokens] = np.unpackbits(bits, count=self._num_tokens, bitorder="little")
            allowed[self._end_ids] |= self._matcher.is_accepting()
        return allowed

    def _is_whole(self, allowed: Allowed) -> bool:
        if not self._matcher.is_accepting():
            return False
        return self._matcher.is_stopped() or np.count_nonzero(allowed) == len(self._end_ids)


@lru_cache(maxsize=32)
def _compiled(tokenizer: PreTrainedTokenizerBase, num_tokens: int, name: str, text: str) -> "LLMatcher":
    """The automaton before the first token; in its error state where the text is no grammar. Raises UserError."""
    grammar = read_grammar(name, text)
    from llguidance import LLMatcher, LLParserLimits  # optional: the extra `grammar`; read_grammar says what is missing

    vocabulary = _vocabulary(tokenizer, num_tokens)
    # Its own messages and states hold parts of texts: nothing of them may reach a log.
    return LLMatcher(vocabulary, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> "LLTokenizer":
    """The bytes of every token, and an end token after the last, which no base writes: a request's own are a matter of
    GrammarState."""
    from llguidance import LLTokenizer  # optional: the extra `grammar`; read_grammar says what is missing

    if not tokenizer.is_fast:
        raise UserError(_UNREADABLE.format(f"a {type(tokenizer).__name__}, which is written in Python"))
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    backend.add_special_tokens([_END])
    try:
        return LLTokenizer(backend.to_str(), eos_token=backend.token_to_id(_END))
    except ValueError as error:  # its only word for a decoder that it does not know
        raise UserError(_UNREADABLE.format(f"one that llguidance refuses ({cut(str(error))})")) from error


def _reason(matcher: "LLMatcher") -> str:
    return cut(matcher.get_error())
