"""Time of a step by its parts, with heads of random weights on a tree of 16 nodes and without drafts.

    python tests/step_parts.py BASE [default|plain|medusa] [TOKENS]

default: heads as conf/heads has them; plain: the same without induction; medusa: those of the paper. Prints JSON:
medians of microseconds a step over ROUNDS answers, with and without drafts in turns. The same file runs in checkouts of
other commits (PYTHONPATH), to compare them in turns.
"""

import json
import sys
import time
from statistics import median

import torch

from euryale.base.base import load_base
from euryale.base.config import BaseConfig
from euryale.decoding.engine import Engine
from euryale.decoding.tree.tree import Tree
from euryale.heads.config import HeadsConfig
from euryale.heads.heads import Heads

ROUNDS, WARM = 8, 2
DESIGNS = {
    "default": HeadsConfig(),
    "plain": HeadsConfig(induction=0),
    "medusa": HeadsConfig(
        kind="medusa", body="resblock", width=1.0, output="own", root_token=False, vocab_share=1.0, features="last",
        induction=0,
    ),
}  # fmt: skip
PATHS = (
    (0,), (0, 0), (1,), (0, 1), (0, 0, 0), (1, 0), (2,), (0, 0, 0, 0), (0, 2), (0, 1, 0), (3,), (2, 0), (0, 0, 1), (4,),
    (1, 1),
)  # fmt: skip
PROMPT = [[1, 5, 9, 2, 7, 3, 8, 4, 6]]


def main() -> None:
    path, design = sys.argv[1], DESIGNS[sys.argv[2] if len(sys.argv) > 2 else "default"]
    num_tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 100
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = load_base(BaseConfig(path=path))
    engine = Engine(base, Heads(design, base.hidden_size, base.vocab_size), tree=Tree.from_paths(PATHS))
    found: dict[str, list[dict[str, float]]] = {"heads": [], "none": []}
    for _ in range(ROUNDS):
        for drafter, rounds in found.items():
            before, start = dict(engine.seconds), time.perf_counter()
            chosen = None if drafter == "heads" else drafter
            [answer] = engine.generate(PROMPT, num_tokens, ignore_eos=True, drafter=chosen)
            whole = time.perf_counter() - start
            parts = {part: seconds - before[part] for part, seconds in engine.seconds.items() if part != "prefill"}
            rounds.append({part: 1e6 * spent / answer.num_steps for part, spent in (parts | {"all": whole}).items()})
    medians = {
        drafter: {part: round(median(one[part] for one in rounds[WARM:])) for part in rounds[0]}
        for drafter, rounds in found.items()
    }
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
