"""Two processes that divide a base write the text of one, and what cannot be divided is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import in_processes
from plain_heads import plain_heads
from random_models import random_heads
from scripts import Result, assert_refused, run_script
from tiny_llama import save_tiny_llama
from transformers import AutoConfig

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig
from euryale.base.tensor_parallel import check_same, check_tensor_parallel
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.heads.checkpoint import save_heads
from euryale.system import processes

PROMPTS = ["hello world hello", "abc abc abc abc a"]


@pytest.fixture(scope="module")
def whole(tiny_llama_folder: Path) -> BaseConfig:
    return BaseConfig(path=str(tiny_llama_folder), dtype="float32", device="cpu")


def smallest_margin(base: Base, ids: list[int], num_prompt: int) -> float:
    """How far, in logits, the token that was taken lies before the next best, at the closest call of an answer."""
    ids_1T = torch.tensor([ids])
    positions_1T = torch.arange(len(ids))[None]
    hidden_1TD = base.forward_packed(ids_1T, positions_1T, torch.zeros_like(ids_1T))
    best = base.logits(hidden_1TD[0, num_prompt - 1 : -1]).topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


def test_two_processes_with_heads_write_what_one_writes(whole: BaseConfig, tmp_path: Path) -> None:
    """The sums of two halves differ from one sum by less than 1e-4 of a logit here (float32, 64 addends of order 1);
    every token of these answers leads by 50 times that, so no processor may decide one of them differently."""

    def answers(config: BaseConfig) -> tuple[list[list[int]], list[list[int]], Base]:
        base = load_base(config)
        engine = Engine(base, random_heads(plain_heads("hydra", num_heads=2), base), tree="chain")
        greedy = engine.generate(PROMPTS, 24, ignore_eos=True)
        drawn = engine.generate(PROMPTS, 24, temperature=0.8, seed=3, ignore_eos=True)
        return [answer.ids for answer in greedy], [answer.ids for answer in drawn], base

    expected, _, base = answers(whole)
    prompts = [base.tokenizer(prompt).input_ids for prompt in PROMPTS]
    for prompt, answer in zip(prompts, expected, strict=True):
        assert smallest_margin(base, prompt + answer, len(prompt)) > 5e-3

    def work() -> tuple[list[list[int]], list[list[int]], tuple[int, ...], int, bool]:
        greedy, drawn, divided = answers(replace(whole, tensor_parallel=2))
        product = divided.model.base_model.layers[0].mlp.up_proj.weight
        num_kv_heads = divided.cache_config.num_attention_heads
        is_whole = type(divided.lm_head_weight) is torch.nn.Parameter
        return greedy, drawn, tuple(product.to_local().shape), num_kv_heads, is_whole

    first, second = in_processes(2, work, tmp_path)
    assert first[0] == second[0] == expected
    assert first[1] == second[1], "both draw the same"
    assert first[2:] == second[2:] == ((32, 32), 1, True), "half of the MLP, one of two key heads, all of the output"


def test_only_the_first_process_of_a_divided_base_speaks(whole: BaseConfig, tmp_path: Path) -> None:
    base = load_base(whole)
    save_heads(tmp_path / "heads", random_heads(plain_heads("hydra", num_heads=2), base), base, {})
    settings = ["base.device=cpu", "base.dtype=float32", "tree=chain", "threads=1", "max_new_tokens=12", "prompt=a b c"]

    def work() -> Result:
        return run_script("infer/run.py", f"checkpoint={tmp_path}/heads", *settings, "base.tensor_parallel=2")

    alone = run_script("infer/run.py", f"checkpoint={tmp_path}/heads", *settings)
    first, second = in_processes(2, work, tmp_path)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert first.last_line["text"] == alone.last_line["text"] and second.out == "" and second.err == ""


def test_bench_and_eval_of_a_divided_base_measure_one_program_and_the_first_process_tells(
    whole: BaseConfig, tmp_path: Path
) -> None:
    """The same answers as one process gives; each process reads half of the layers, and one file is written."""
    base = load_base(whole)
    save_heads(tmp_path / "heads", random_heads(plain_heads("medusa", num_heads=2), base), base, {})
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    settings = [f"checkpoint={tmp_path}/heads", "base.device=cpu", "base.dtype=float32", "tree=chain", "threads=1"]
    settings += ["max_new_tokens=12", f"prompts={tmp_path}/prompts.txt"]
    divided = "base.tensor_parallel=2"

    def work() -> tuple[Result, Result]:
        output = f"output={tmp_path}/bench.jsonl"
        benched = run_script("infer/bench.py", *settings, "repeats=1", divided, output, f"steps={tmp_path}/steps.jsonl")
        return benched, run_script("infer/eval.py", *settings, divided)

    alone = run_script("infer/eval.py", *settings).last_line
    first, second = in_processes(2, work, tmp_path)
    for told, silent in zip(first, second, strict=True):
        assert (told.status, silent.status) == (0, 0), told.err + silent.err
        assert silent.out == "" and silent.err == "", "the first one speaks"
    benched, evaluated = first[0].last_line, first[1].last_line
    assert benched["identical"] == len(PROMPTS)
    [line] = (tmp_path / "bench.jsonl").read_text().splitlines()
    assert json.loads(line)["contenders"] == benched["contenders"]
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert sum(sum(line["tokens"]) for line in lines) == 3 * 12, "the warm-up's and both answers, of one process"
    read, held = benched["ceiling"]["base_bytes"], 4 * sum(p.numel() for p in base.model.base_model.layers.parameters())
    ends = 4 * (base.lm_head_weight.numel() + base.hidden_size)
    assert ends + held / 2 <= read < ends + 0.6 * held, "half of the layers, but for their norms"
    assert evaluated["accuracy"] == alone["accuracy"]
    for name in ("tau", "identical", "identical_hf", "total"):
        assert evaluated["evaluation"][name] == alone["evaluation"][name], name


def test_processes_that_come_apart_stop_instead_of_adding_what_does_not_belong_together(tmp_path: Path) -> None:
    def work() -> list[str]:
        processes.join("cpu")
        told = []
        for rows in (1, 1 + processes.number()):
            for shift in (0, processes.number()):
                try:
                    check_same(torch.arange(4 * rows).view(rows, 4) + shift, torch.arange(4)[None])
                except RuntimeError as error:
                    told.append(str(error))
        return told

    for told in in_processes(2, work, tmp_path):
        assert len(told) == 3 and all("read different tokens" in message for message in told)


@pytest.mark.parametrize(
    ("changes", "is_4bit", "count", "message"),
    [
        ({}, False, 1, "must be the number of processes; got 2 and 1. Start them with torchrun --nproc_per_node=2"),
        ({"tensor_parallel": 0}, False, 1, "base.tensor_parallel must be at least 1; got 0"),
        ({}, True, 2, "cannot divide 4-bit weights"),
        ({"forward": "exact"}, False, 2, "needs base.forward=auto or plain"),
        ({"backend": "torch"}, False, 2, "base.backend=auto; got auto and torch"),
        ({"tensor_parallel": 4}, False, 4, "must divide the attention heads .* 4 of queries and 2 of keys; got 4"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    whole: BaseConfig, changes: dict, is_4bit: bool, count: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(count))
    config = replace(whole, **({"tensor_parallel": 2} | changes))
    with pytest.raises(UserError, match=message):
        check_tensor_parallel(config, AutoConfig.from_pretrained(whole.path), torch.device("cpu"), is_4bit)


def test_a_family_without_a_plan_is_refused(whole: BaseConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    of_base = AutoConfig.for_model("gpt_neox", num_attention_heads=2)
    of_base.base_model_tp_plan = None
    with pytest.raises(UserError, match="no plan to divide model_type=gpt_neox"):
        check_tensor_parallel(replace(whole, tensor_parallel=2), of_base, torch.device("cpu"), False)


def test_scripts_whose_processes_would_go_their_own_way_refuse_it(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "base")
    base = ["checkpoint=null", f"base.path={folder}", "drafter=lookup", "base.tensor_parallel=2"]
    for script in ("infer/serve_ray.py", "infer/compare.py", "infer/run.py"):
        assert_refused(run_script(script, *base), "eval.py and run.py with prompt=TEXT; got 2")
    assert_refused(run_script("infer/run.py", *base, "prompt=x"), "the number of processes; got 2 and 1")
