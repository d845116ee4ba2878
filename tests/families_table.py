"""The table of docs/families.md: every causal language model family of transformers, compared or refused.

    python tests/families_table.py 30     compares 30 answers of each family and writes the table again

A family counts as supported if all its answers, plain, drafted, in trees and in a ragged batch, are those of
transformers' own greedy decoding with the same weights. Not a test file itself.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from random_models import HEAD_DESIGNS, random_heads, random_tree
from tiny_families import FAMILIES, VOCAB, save, tiny_config, tiny_model
from transformers import CONFIG_MAPPING, PreTrainedModel

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.base.families import refused_feature
from euryale.decoding.engine import Engine

DOCUMENT = Path(__file__).parents[1] / "docs" / "families.md"
NEW_TOKENS = 24
_BEGIN, _END = "<!-- made by tests/families_table.py -->\n", "<!-- end -->\n"


class Compared(NamedTuple):
    """Answers of one family that were not transformers' own, by the way they were decoded; and tokens a step."""

    num_answers: int
    wrong: dict[str, int]
    tau: float


def compare(model: PreTrainedModel, num_answers: int, seed: int = 0) -> Compared:
    """Greedy answers to random prompts of 1 to 16 tokens: `model` through transformers, its copy through ours."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 16))] for _ in range(num_answers)]
    expected = [generate(model, prompt, NEW_TOKENS) for prompt in prompts]
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(BaseConfig(path=str(save(model, Path(folder))), dtype="float32", device="cpu"))
    wrong, taus = {}, []
    for name, engine in engines(base, rng).items():
        together = [answer.ids for answer in engine.generate(prompts, NEW_TOKENS, ignore_eos=True)]
        alone = [
            engine.generate([prompt], NEW_TOKENS, ignore_eos=True)[0] for prompt in prompts[: max(1, num_answers // 10)]
        ]
        wrong[name] = sum(found != wanted for found, wanted in zip(together, expected, strict=True))
        wrong[name] += sum(found.ids != wanted for found, wanted in zip(alone, expected, strict=False))
        taus += [answer.tau for answer in alone]
    return Compared(num_answers, wrong, max(taus))


def engines(base: Base, rng: random.Random) -> dict[str, Engine]:
    """Plain decoding; drafts from the text in chains, from guesses in many branches, from heads in a random tree."""
    heads = random_heads(HEAD_DESIGNS[0], base)
    return {
        "none": Engine(base, drafter="none"),
        "lookup": Engine(base, drafter="lookup"),
        "lookahead": Engine(base, drafter="lookahead"),
        "heads": Engine(base, heads, "heads", random_tree(rng, heads.num_heads, 4, 12)),
    }


@torch.inference_mode()
def generate(model: PreTrainedModel, prompt: list[int], new_tokens: int) -> list[int]:
    """transformers' own greedy answer, with its attention and its cache."""
    ids_1T = torch.tensor([prompt])
    out = model.generate(
        ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=[],
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def verdict(family: str) -> str:
    """What is said of the family's tiny config: `yes`, or why it is refused."""
    feature = refused_feature(tiny_config(family))
    return "yes" if feature is None else f"refused: {feature}"


def table() -> str:
    """The rows of the document: families that work first."""
    verdicts = {family: verdict(family) for family in FAMILIES}
    rows = ["| model_type | class of the config | supported |", "|---|---|---|"]
    for family in sorted(FAMILIES, key=lambda family: (verdicts[family] != "yes", family)):
        rows.append(f"| {family} | {CONFIG_MAPPING[family].__name__} | {verdicts[family]} |")
    return "\n".join(rows) + "\n"


def written_table() -> str:
    """The table that the document holds."""
    return DOCUMENT.read_text().partition(_BEGIN)[2].partition(_END)[0]


def main(num_answers: int) -> None:
    failed = []
    for family in FAMILIES:
        said = verdict(family)
        if said == "yes":
            found = compare(tiny_model(family), num_answers)
            failed += [family] * any(found.wrong.values())
            said = f"{found.wrong} of {num_answers} differ, up to {found.tau:.2f} tokens a step"
        print(f"{family}: {said}", flush=True)
    if failed:
        sys.exit(f"not supported as claimed: {', '.join(failed)}")
    before, _, rest = DOCUMENT.read_text().partition(_BEGIN)
    DOCUMENT.write_text(before + _BEGIN + table() + _END + rest.partition(_END)[2])


if __name__ == "__main__":
    main(int(sys.argv[1]))
