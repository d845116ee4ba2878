"""Answers a prompt, or chats, in the terminal: python infer/run.py checkpoint=DIR prompt="..."

prompt=- reads the prompt from stdin; without a prompt a chat opens.

Examples:
  python infer/run.py checkpoint=last prompt="Once upon a time"
  python infer/run.py checkpoint=smollm2-heads
  python infer/run.py checkpoint=last temperature=0.8 seed=1 prompt=- < prompt.txt
"""

import logging
import sys
import time

import euryale.cli.ctrl_c  # noqa: F401  (first: Ctrl-C ends with a line from here on)
from euryale.cli.places import check_engine
from euryale.cli.schemas import InferConfig
from euryale.cli.script import script, use_threads

log = logging.getLogger(__name__)


@script("infer", __doc__)
def main(config: InferConfig) -> dict[str, object]:
    check_engine(config)
    # Here, so that a refusal and --help do not wait for torch.
    from euryale.cli.chat import chat, notice_of_plain_text, read_all, stream_answer
    from euryale.cli.open_engine import open_checkpoint, open_engine
    from euryale.evaluation.step_log import log_steps

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
