"""What the tests of calibration share: designs of heads, prompts, and text that a base wrote."""

from collections.abc import Sequence

from plain_heads import plain_heads

from euryale.base.base import Base
from euryale.data.row_prompts import Opening
from euryale.decoding.engine import Engine
from euryale.evaluation.config import CalibrateConfig
from euryale.evaluation.rank_vectors import Text

MAX_RANK = 6
DESIGNS = {
    "hydra": plain_heads("hydra", num_heads=3, vocab_share=1.0),
    "hydra, draft vocabulary": plain_heads("hydra", num_heads=3, vocab_share=0.5),
    "hydra, several features": plain_heads("hydra", num_heads=3, features="several"),
    "medusa": plain_heads("medusa", num_heads=3, body="resblock", vocab_share=1.0),
    "medusa, published form": plain_heads(
        "medusa", num_heads=3, body="resblock", output="own", root_token=False, vocab_share=1.0
    ),
}
SMALL = CalibrateConfig(
    num_prompts=3, new_tokens=12, temperatures=[0.0, 0.8], max_rank=5, node_counts=[1, 2, 4, 8], repeats=2,
    context_tokens=8, batch_size=2,
)  # fmt: skip


def written(base: Base, prompt: Sequence[int], temperature: float, seed: int = 5, new_tokens: int = 14) -> Text:
    [answer] = Engine(base, drafter="none").generate([list(prompt)], new_tokens, temperature=temperature, seed=seed)
    return Text([*prompt, *answer.ids], len(prompt), seed)


def openings(*prompts: list[int]) -> list[Opening]:
    return [Opening(prompt, str(number), "test") for number, prompt in enumerate(prompts)]


PROMPTS = openings([4, 1, 7], [2, 2], [9, 0, 3, 5])
