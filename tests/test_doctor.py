"""The doctor sees what the heads do on the user's prompts, and names the cause that was planted."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_heads import plain_heads
from random_models import letter_tokenizer, random_base, random_heads
from scripts import assert_refused, run_script

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.decoding.engine import Engine
from euryale.decoding.sampling import Sampling
from euryale.decoding.tree.tree import chain
from euryale.errors import UserError
from euryale.evaluation.diagnosis import diagnose
from euryale.evaluation.doctor import Case, ExamSettings, Sample, differences_of, examine, take_sample
from euryale.heads.checkpoint import save_heads
from euryale.report.doctor_table import doctor_table

TEMPLATE = "{% for m in messages %}a{{ m.content }}{% endfor %}{% if add_generation_prompt %}bc{% endif %}"


def seen(tau: float = 2.0, first: float = 0.5, **changes: Any) -> Sample:
    return Sample(16, 1024, tau, [first, 0.3], 0.0, 0.0, None, None)._replace(**changes)


HEALTHY = Case(
    asked=seen(), own=seen(), other_form=None, greedy=None, own_text_now=[0.5, 0.3], own_text_then=[0.5, 0.3],
    has_template=False, num_chat=0, temperature=0.0, calibrated=[0.0, 0.8], num_nodes=16, block_size=512,
    trained_tokens=100_000, differences=[],
)  # fmt: skip


def causes(**changes: Any) -> list[str]:
    return [finding.cause for finding in diagnose(HEALTHY._replace(**changes), "DIR", "FILE")]


def test_heads_that_do_as_well_as_on_their_own_text_have_nothing() -> None:
    assert causes() == []
    assert "Nothing found" in doctor_table(HEALTHY, [])
    assert causes(own=None, own_text_now=None, own_text_then=None, trained_tokens=None, block_size=None) == []


@pytest.mark.parametrize(
    ("changes", "cause", "words"),
    [
        ({"num_nodes": 1, "asked": seen(1.0)}, "no tree", "infer/calibrate.py checkpoint=DIR prompts=FILE"),
        ({"own_text_now": [0.2, 0.1], "asked": seen(1.4), "own": seen(1.4), "differences": ["base.dtype=a here, b"]},
         "another base", "base.dtype=auto"),
        ({"own_text_now": [0.2, 0.1], "asked": seen(1.4), "own": seen(1.4)}, "another base", "leave base.path out"),
        ({"asked": seen(1.3), "other_form": seen(2.0), "has_template": True}, "template", "through the chat template"),
        ({"asked": seen(1.3), "other_form": seen(2.0), "has_template": True, "num_chat": 16},
         "template", "as plain text"),
        ({"asked": seen(1.3), "own": seen(1.3), "greedy": seen(2.0), "temperature": 1.2},
         "temperature", "calibrate.temperatures=[0.0,1.2]"),
        ({"asked": seen(1.3), "own": seen(1.3), "greedy": seen(2.0), "temperature": 0.8},
         "temperature", "regenerate.greedy_share"),
        ({"asked": seen(1.5, outside_share=0.4)}, "draft vocabulary", "heads.vocab_share=1.0"),
        ({"asked": seen(1.6, 0.3, far_share=0.6, near_top1=0.5, far_top1=0.15)},
         "context length", "data.block_size=1024"),
        ({"own_text_now": [0.15, 0.1], "own_text_then": [0.15, 0.1], "asked": seen(1.2, 0.15), "own": seen(1.2, 0.15)},
         "weak heads", "optim.num_steps"),
        ({"asked": seen(1.3, 0.2)}, "kind of text", "data.files=FILE"),
        ({"asked": seen(1.3, 0.2), "own": None, "own_text_now": None}, "kind of text", "heads.init=DIR"),
    ],
)  # fmt: skip
def test_each_cause_is_named_first_where_it_was_planted_with_what_helps(
    changes: dict[str, Any], cause: str, words: str
) -> None:
    case = HEALTHY._replace(**changes)
    findings = diagnose(case, "DIR", "FILE")
    assert findings[0].cause == cause and findings[0].gain >= 1.1
    assert words in findings[0].evidence + findings[0].remedy
    text = doctor_table(case, findings)
    assert f"likeliest cause: {cause}" in text and findings[0].remedy in text and text.isascii()


def test_what_a_cause_explains_is_not_blamed_on_the_kind_of_text_again() -> None:
    assert causes(asked=seen(1.0, 0.5), other_form=seen(1.95), has_template=True) == ["template"]
    assert causes(asked=seen(1.0, 0.5), other_form=seen(1.5), has_template=True) == ["template", "kind of text"]
    (finding,) = diagnose(HEALTHY._replace(num_nodes=1, asked=seen(1.0), greedy=seen(2.0)), "DIR", "FILE")
    assert finding.cause == "no tree" and math.isinf(finding.gain)


@pytest.fixture(scope="module")
def base() -> Base:
    return random_base(vocab_size=13, seed=3, max_length=96)


def engine_of(base: Base, draft_ids: tuple[int, ...] = ()) -> Engine:
    heads = random_heads(plain_heads(num_heads=2, width=1.0, vocab_share=0.5 if draft_ids else 1.0), base)
    if draft_ids:
        heads.choose_draft_ids(torch.tensor([float(token in draft_ids) for token in range(13)]))
    return Engine(base, heads, "heads", chain(2))


def test_a_sample_counts_tokens_that_cannot_be_drafted_and_tokens_beyond_the_training(base: Base) -> None:
    prompts, settings = [[1, 2, 3], [4, 5]], ExamSettings(max_new_tokens=60, batch_size=1)
    answers = Engine(base, drafter="none").generate(prompts, 60, temperature=0.9, seed=[0, 1])
    written = [token for answer in answers for token in answer.ids]
    engine = engine_of(base, (0, 2, 4, 6, 8, 10))
    assert engine.heads is not None and engine.heads.draft_ids is not None
    known = engine.heads.draft_ids.tolist()
    sample = take_sample(engine, prompts, settings, Sampling(0.9), 10, "prompts")
    assert sample.num_tokens == len(written) == 120
    assert sample.outside_share == sum(token not in known for token in written) / 120
    assert sample.far_share == (60 - 7 + 60 - 8) / 120 and sample.near_top1 is None  # too few tokens are near
    both = take_sample(engine_of(base), prompts, settings, Sampling(0.9), 36, "prompts")
    assert both.outside_share == 0 and both.near_top1 is None
    halves = take_sample(engine_of(base), [*prompts, [7, 7]], settings, Sampling(0.9), 36, "prompts")
    assert halves.near_top1 is not None and halves.far_top1 is not None
    assert min(halves.near_top1, halves.far_top1) <= halves.top1[0] <= max(halves.near_top1, halves.far_top1)
    with pytest.raises(UserError, match="must have 64 tokens together to judge by; got 6"):
        take_sample(engine_of(base), prompts, ExamSettings(max_new_tokens=3), Sampling(), 10, "prompts")


def test_prompts_are_asked_in_the_other_form_and_greedily_too(base: Base, tmp_path: Path) -> None:
    tokenizer = letter_tokenizer(13)
    tokenizer.chat_template = TEMPLATE
    chatting = Base(base.model, tokenizer, base.path, base.fingerprint)
    file = tmp_path / "prompts.jsonl"
    engine, settings = engine_of(chatting), ExamSettings(2, 40, Sampling(0.7))
    for record, ids in (({"prompt": "de"}, "de"), ({"question": "de"}, "adebc")):
        file.write_text(f"{json.dumps(record)}\n{json.dumps(record)}\n")
        case = examine(engine, str(file), {}, None, settings)
        other = "adebc" if ids == "de" else "de"
        for sample, text, sampling in (
            (case.asked, ids, Sampling(0.7)), (case.other_form, other, Sampling(0.7)), (case.greedy, ids, Sampling()),
        ):  # fmt: skip
            expected = take_sample(engine, [chatting.tokenizer(text)["input_ids"]] * 2, settings, sampling, None, "x")
            assert sample == expected
        assert case.num_chat == (0 if ids == "de" else 2) and case.own is None


def test_another_dtype_or_quantisation_than_that_of_the_training_is_seen(base: Base) -> None:
    trained = {"dtype": "bfloat16", "base": {"quantization": "nf4"}}
    assert differences_of(base, trained) == [
        "base.dtype=float32 here, bfloat16 in training",
        "base.quantization=none here, nf4 in training",
    ]
    assert differences_of(base, {"dtype": "float32", "base": {"quantization": "none"}}) == []
    assert differences_of(base, {}) == []


def test_the_script_tells_what_it_saw_and_writes_it(tmp_path: Path) -> None:
    base = load_base(BaseConfig())
    save_heads(tmp_path / "run", random_heads(plain_heads(num_heads=2), base), base, {"argv": ["test"]})
    result = run_script(
        "infer/doctor.py", f"checkpoint={tmp_path / 'run'}", "prompts=data/prompts.txt", "limit=3", "max_new_tokens=24",
        "tree=chain", "threads=1", f"output={tmp_path / 'seen.json'}",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert "head 1 right at first" in result.out and result.last_line["tau"] >= 1
    written = json.loads((tmp_path / "seen.json").read_text())
    assert written["seen"]["asked"]["num_prompts"] == 3 and written["findings"] == []
    assert_refused(run_script("infer/doctor.py", f"checkpoint={tmp_path / 'run'}"), "prompts must be a file")
    assert_refused(run_script("infer/doctor.py", "checkpoint=null", "prompts=x"), "checkpoint")
    few = ("prompts=data/prompts.txt", "limit=2", "max_new_tokens=8")
    assert_refused(run_script("infer/doctor.py", f"checkpoint={tmp_path / 'run'}", *few), "at least 64 tokens", "2 x 8")
    missing = ("prompts=none.txt", "tree=chain")
    assert_refused(run_script("infer/doctor.py", f"checkpoint={tmp_path / 'run'}", *missing), "there is no such file")
