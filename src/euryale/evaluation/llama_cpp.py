"""llama.cpp as a contender: the base's own GGUF file, in its own quantisation, through the package xllamacpp.

Of a 4-bit file it reads a quarter of the bytes that the other contenders read, and rounds otherwise, so its text is not
compared with theirs. Greedy answers only, because its samplers filter in another order.
https://github.com/xorbitsai/xllamacpp
"""

from typing import Any

from euryale.base.base import Base
from euryale.base.locate import gguf_file
from euryale.errors import UserError

_QUIET = -1  # of its own log


class LlamaCpp:
    """The model in memory, with one place for an answer."""

    def __init__(self, base: Base, max_new_tokens: int, num_threads: int) -> None:
        """Raises UserError for a base that is not a GGUF file, and for one that several processes divide."""
        if base.forward_settings.tensor_parallel > 1:
            raise UserError("contenders must not name llama_cpp where processes divide the base. Leave it out.")
        file = gguf_file(base.path)
        if file is None:
            raise UserError(
                f"contenders: llama_cpp needs a base in a GGUF file; got {base.path}. Take base.path=FILE.gguf or "
                "base=smollm2, or leave llama_cpp out."
            )
        import xllamacpp  # optional: the extra `llamacpp`

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx = base.max_length
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads
        params.verbosity = _QUIET
        self._server = xllamacpp.Server(params)
        self._max_new_tokens = max_new_tokens
        self._eos_ids = base.eos_ids

    def answer(self, prompt: list[int]) -> list[int]:
        """The greedy answer's ids, its end token included."""
        answered: dict[str, Any] = self._server.handle_completions(
            {
                "prompt": prompt,
                "max_tokens": self._max_new_tokens,
                "temperature": 0.0,
                "cache_prompt": False,  # every turn reads its prompt, as the other contenders do
                "logprobs": 1,  # the only way to be told ids: 2% of the time
            }
        )
        [choice] = answered["choices"]
        ids = [int(token["id"]) for token in choice["logprobs"]["content"]]
        ended = choice["finish_reason"] == "stop" and self._eos_ids
        return [*ids, self._eos_ids[0]] if ended else ids
