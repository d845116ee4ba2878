"""Text to token ids and back, away from the event loop and from the engine's own tokenizer.

A Hugging Face tokenizer that two threads use at once fails with "Already borrowed". So prompts go through a copy that
belongs to one worker thread, and the text of single tokens through another that belongs to the event loop.
"""

import asyncio
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from euryale.data.rows import Message
from euryale.data.tokens import prompt_ids
from euryale.decoding.grammar import check_grammar
from euryale.decoding.sampling import Sampling
from euryale.errors import UserError
from euryale.server.errors import bad_request
from euryale.server.response_format import Form

T = TypeVar("T")


class Tokens:
    """A tokenizer for the server. Coroutines wait for the worker thread; `text_of` and `bytes_of` answer at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, bos_id: int | None) -> None:
        self.has_chat_template = bool(tokenizer.chat_template)
        self._vocab_size = vocab_size
        self._bos_id = bos_id
        self._of_engine = tokenizer
        self._in_worker = copy.deepcopy(tokenizer)
        self._in_loop = copy.deepcopy(tokenizer)
        self._worker = ThreadPoolExecutor(1, "tokenizer")
        self._texts: dict[int, str] = {}

    def close(self) -> None:
        self._worker.shutdown(cancel_futures=True)

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt; empty text is the begin-of-text token. Raises ApiError 400 where there is none."""
        ids = await self._run(
            lambda tokenizer: list(tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])
        )
        return self._at_least_one(ids, "prompt")

    async def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, through the chat template where the model has one.

        Raises ApiError 400 for a conversation that the template refuses.
        """
        try:
            ids = await self._run(lambda tokenizer: prompt_ids(None, tuple(messages), tokenizer))
        except UserError as error:
            reason = error.__cause__
            why = f" ({reason})" if isinstance(reason, TemplateError) else ""
            roles = ", ".join(message.role for message in messages)
            raise bad_request(
                f"messages must fit the model's chat template; it refuses the roles {roles}{why}.", "messages"
            ) from error
        return self._at_least_one(ids, "messages")

    def _at_least_one(self, ids: list[int], param: str) -> list[int]:
        if ids:
            return ids
        if self._bos_id is not None:
            return [self._bos_id]
        raise bad_request(f"{param} must hold at least one token; got an empty text.", param)

    async def decode(self, ids: Sequence[int]) -> str:
        return await self._run(lambda tokenizer: _decode(tokenizer, ids))

    async def check_form(self, form: Form | None, sampling: Sampling) -> None:
        """Makes the grammar that a form asks for, so that the engine finds it made. Raises ApiError 400 where that
        cannot be."""
        if form is None:
            return
        try:
            await self._run(lambda _: check_grammar(self._of_engine, sampling))
        except UserError as error:
            raise bad_request(f"{form.param}: {error}", form.param) from error

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raises ApiError 400 for an id that the model does not have."""
        wrong = next((token for token in ids if not 0 <= token < self._vocab_size), None)
        if wrong is not None:
            raise bad_request(f"{param} must hold token ids from 0 to {self._vocab_size - 1}; got {wrong}.", param)

    def text_of(self, token: int) -> str:
        """One token alone, special ones included; bytes that are not UTF-8 on their own are U+FFFD."""
        text = self._texts.get(token)
        if text is None:
            # A sentence-piece tokenizer drops the space of a text's first token: decode it after another one.
            both = self._in_loop.decode([token, token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            alone = self._in_loop.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            text = both[len(alone) :] if both.startswith(alone) else alone
            self._texts[token] = text
        return text

    async def _run(self, work: Callable[[PreTrainedTokenizerBase], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work, self._in_worker)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
