"""Chat with the engine in a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from euryale.cli.schemas import InferConfig
from euryale.data.rows import Message
from euryale.data.tokens import prompt_ids
from euryale.decoding.engine import Engine, Prompt
from euryale.errors import UserError

if TYPE_CHECKING:  # transformers takes seconds to import and is only named in a signature here
    from transformers import PreTrainedTokenizerBase

MOST_CHARACTERS = 1 << 27  # of a prompt: no context holds as many, and what writes without an end is told
HELP = "Type a message and press Enter. An empty line or Ctrl-D ends the chat; /new forgets what was said."


def read_all(source: TextIO) -> str:
    """The prompt on stdin, without a byte order mark. Raises UserError when it is not text, cannot be read, or never
    ends."""
    return _as_text(source.read).removeprefix("\ufeff")


def _as_text(read: Callable[[int], str]) -> str:
    try:
        text = read(MOST_CHARACTERS)
        text.encode()  # a terminal in the C locale gives half characters
    except UnicodeError as error:
        raise UserError(f"stdin must be UTF-8 text; got other bytes ({error}). Convert it first.") from error
    except OSError as error:  # one that is open for writing alone, or lost
        raise UserError(f"stdin must be readable; got: {error}. Give a file or a terminal.") from error
    if len(text) == MOST_CHARACTERS:
        raise UserError(f"stdin must be a prompt of fewer than {MOST_CHARACTERS:,} characters; got more. Give less.")
    return text


def notice_of_plain_text(prompt: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What to tell a person who asks a chat model as if it were one that goes on with texts; None where nothing is odd.

    A prompt that holds tokens of the template was rendered through it already.
    """
    if not tokenizer.chat_template or any(token in prompt for token in tokenizer.all_special_tokens):
        return None
    return (
        "prompt is a text to go on from, and this base is a chat model: to ask it, leave prompt out (a chat opens), or "
        "use infer/compare.py questions='[\"...\"]'"
    )


def stream_answer(engine: Engine, prompt: Prompt, config: InferConfig, out: TextIO) -> dict[str, Any]:
    """Writes the answer piece by piece; returns its text, tokens, steps and tau."""
    answer = engine.stream(
        prompt,
        config.max_new_tokens,
        seed=config.seed,
        stop=config.stops(),
        stop_ids=config.stop_ids,
        ignore_eos=config.ignore_eos,
        **config.sampling().keywords(),
    )
    for piece in answer:
        out.write(piece)
        out.flush()
    last = answer.generation
    assert last is not None
    return {
        "text": last.text,
        "num_tokens": len(last.ids),
        "num_steps": last.num_steps,
        "tau": round(last.tau, 3),
        "undrafted_share": round(last.undrafted_share, 3),
        "finish_reason": last.finish_reason,
        "is_lossless": last.is_lossless,
        "is_exact": last.is_exact,
    }


def chat(engine: Engine, config: InferConfig, source: TextIO, out: TextIO) -> dict[str, object]:
    """Reads messages until an empty line. Bases without a chat template see each message as a text to go on with."""
    template = bool(engine.base.tokenizer.chat_template)
    out.write(
        f"{engine.base.path}, {'chat' if template else 'text continuation: this base has no chat template'}\n{HELP}\n"
    )
    turns: list[Message] = []
    num_answers = num_tokens = num_steps = 0
    while True:
        out.write("> ")
        out.flush()
        line = _as_text(source.readline)
        if not line.strip():
            out.write("\n")  # what follows begins a line of its own
            break
        if line.strip() == "/new":
            turns = []
            continue
        turns.append(Message("user", line.rstrip("\n")))
        prompt: Prompt = prompt_ids(None, tuple(turns), engine.base.tokenizer) if template else line.rstrip("\n")
        try:
            answer = stream_answer(engine, prompt, config, out)
        except UserError as error:  # a chat that outgrew the context goes on anew, it does not end
            out.write(f"error: {error} (/new starts over)\n")
            turns.pop()
            continue
        turns.append(Message("assistant", str(answer["text"])))
        out.write(f"\n[{answer['num_tokens']} tokens, tau {answer['tau']}]\n")
        num_answers += 1
        num_tokens += answer["num_tokens"]
        num_steps += answer["num_steps"]
    return {"num_answers": num_answers, "num_tokens": num_tokens, "tau": num_tokens / num_steps if num_steps else None}
