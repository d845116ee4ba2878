"""Answers a prompt, or chats, in the terminal: python infer/run.py checkpoint=DIR prompt="..."

prompt=- reads the prompt from stdin; without a prompt a chat opens.
"""

import logging
import sys
import time

import euryale.cli.ctrl_c  # noqa: F401  (first: what follows takes seconds to import)
from euryale.cli.chat import chat, notice_of_plain_text, read_all, stream_answer
from euryale.cli.open_engine import open_checkpoint, open_engine
from euryale.cli.schemas import InferConfig
from euryale.cli.script import script, use_threads
from euryale.evaluation.step_log import log_steps

log = logging.getLogger(__name__)


@script("infer")
def main(config: InferConfig) -> dict[str, object]:
    use_threads(config.threads, config.deterministic, config.seed)
    open_checkpoint(config)  # refuses before stdin is waited for
    prompt = read_all(sys.stdin) if config.prompt == "-" else config.prompt
    engine = open_engine(config)
    if prompt is None:
        with log_steps(engine, config.steps):
            return chat(engine, config, sys.stdin, sys.stdout)
    if notice := notice_of_plain_text(prompt, engine.base.tokenizer):
        log.info(notice)
    start = time.perf_counter()
    with log_steps(engine, config.steps):
        answer = stream_answer(engine, prompt, config, sys.stdout)
        print(flush=True)
    return answer | {"seconds": round(time.perf_counter() - start, 3)}


if __name__ == "__main__":
    main()
