"""Medusa-2 trains heads first and adapters after, holds the base near itself, and leaves a folder that decodes."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from killed_runs import MemoryStream, make_batch
from plain_heads import plain_heads
from scripts import Result, run_script
from tiny_llama import save_tiny_llama

from euryale.base.base import Base, load_base
from euryale.base.config import BaseConfig, LoraConfig
from euryale.base.lora import adapter_disabled, adapter_parameters, add_adapter
from euryale.decoding.engine import Engine
from euryale.errors import UserError
from euryale.heads.checkpoint import read_description
from euryale.heads.heads import Heads, build_heads
from euryale.kernels.rms_norm import normalise
from euryale.system.files import read_json
from euryale.training.config import ObjectiveConfig, OptimConfig
from euryale.training.objective import evaluate_joint, medusa1_loss, medusa2_loss
from euryale.training.signals import Interrupted
from euryale.training.stages import Stage, heads_weight, stage_at
from euryale.training.trainer import Trainer

OPTIM = {
    "num_steps": 8, "warmup_steps": 1, "gradient_accumulation": 2, "log_every": 2, "eval_every": 4, "eval_batches": 2,
    "save_every": 2, "lr": 1e-2, "name": "adamw",
}  # fmt: skip


def make_base(folder: Path, dropout: float = 0.3, seed: int = 0) -> Base:
    base = load_base(BaseConfig(path=str(folder), dtype="float32", device="cpu"))
    add_adapter(base, LoraConfig(rank=3, dropout=dropout), seed)
    return base


def make_trainer(
    folder: Path, run: Path, at: Callable[[int], None] = lambda number: None, resume: bool = False, **optim: object
) -> Trainer:
    """Eight steps, four of them on heads alone; every call loads the base anew."""
    base = make_base(folder)
    heads = build_heads(plain_heads(num_heads=2, width=1.0), base.lm_head_weight)
    objective = ObjectiveConfig(kind="medusa2", lambda_schedule="sine")
    held_out = [make_batch(1000), make_batch(1001)]
    settings = OptimConfig(**(OPTIM | optim))  # type: ignore[arg-type]
    torch.manual_seed(0)
    return Trainer(base, heads, objective, settings, MemoryStream(at), held_out, run, resume=resume)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}


@pytest.fixture(scope="session")
def finished(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    make_trainer(tiny_llama_folder, folder).fit()
    return folder


# Stages


def test_a_run_has_two_stages_and_each_has_a_beginning_and_an_end() -> None:
    stages = [stage_at(step, 8, 0.4) for step in range(8)]
    assert stages == [Stage(1, step, 3) for step in range(3)] + [Stage(2, step, 5) for step in range(5)]
    assert {stage_at(step, 5, 0.0).number for step in range(5)} == {2}
    assert [stage_at(step, 5, 1.0) for step in range(5)] == [Stage(1, step, 5) for step in range(5)]


def test_the_heads_weight_is_constant_or_grows_along_a_sine() -> None:
    assert {heads_weight(Stage(2, step, 4), 0.2, "constant") for step in range(4)} == {0.2}
    grown = [heads_weight(Stage(2, step, 4), 0.2, "sine") for step in range(4)]
    assert grown == pytest.approx([0.2 * math.sin(math.pi / 2 * step / 4) for step in (1, 2, 3, 4)])


@pytest.mark.parametrize(
    "changes",
    [{"stage_one_share": 1.0}, {"stage_one_share": -0.1}, {"lambda_0": 0.0}, {"lambda_0": math.nan},
     {"lambda_schedule": "linear"}, {"heads_lr_multiplier": 0.0}],
    ids=str,
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused(changes: dict) -> None:
    with pytest.raises(UserError, match=f"objective.{next(iter(changes))} must be"):
        ObjectiveConfig(kind="medusa2", **changes).check()


# Losses


def slow_terms(base: Base, heads: Heads, batch) -> tuple[torch.Tensor, torch.Tensor, int]:  # type: ignore[no-untyped-def]
    """KL(base as it was || adapted base) and KL(adapted base || head), label by label, with autograd throughout."""
    T = batch.ids_BT.shape[1]
    of_base = of_heads = torch.zeros((), dtype=torch.float64)
    num = 0
    for row in range(len(batch.ids_BT)):
        ids_1T = batch.ids_BT[row : row + 1]

        def forward(ids_1T: torch.Tensor = ids_1T) -> torch.Tensor:
            return base.model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state[0]

        hidden_TD = forward()
        with adapter_disabled(base), torch.no_grad():
            before_TD = forward()
        embeddings_TD = normalise(base.embed(ids_1T[0]))
        adapted_TV, before_TV = (base.logits(x).log_softmax(-1) for x in (hidden_TD, before_TD))
        for p in range(1, T):
            if not batch.is_target_BT[row, p]:
                continue
            num += 1
            of_base = of_base + (before_TV[p - 1].exp() * (before_TV[p - 1] - adapted_TV[p - 1])).sum()
            for k in range(heads.num_heads):
                t = p - 2 - k
                if t < 0:
                    continue
                x_1D = heads.head_hidden(k, hidden_TD[t : t + 1], embeddings_TD[None, t + 1 : t + 2 + k])
                log_q_V = base.logits(x_1D)[0].log_softmax(-1)
                target_V = adapted_TV[p - 1].detach()
                of_heads = of_heads + (target_V.exp() * (target_V - log_q_V)).sum()
    return of_base, of_heads, num


def test_stage_two_s_loss_and_gradients_are_those_of_the_slow_twin(tiny_llama_folder: Path) -> None:
    base = make_base(tiny_llama_folder, dropout=0.0)
    base.model.double()
    heads = build_heads(plain_heads(num_heads=2, width=1.0), base.lm_head_weight).double()
    generator = torch.Generator().manual_seed(1)
    parameters = {**adapter_parameters(base), **dict(heads.named_parameters())}
    for parameter in parameters.values():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2
    batch, stage = make_batch(3, rows=2, length=10), Stage(2, 1, 4)
    config = ObjectiveConfig(kind="medusa2", lambda_0=0.3, lambda_schedule="sine", chunk_tokens=4)
    part = medusa2_loss(base, heads, batch, config, stage)
    part.loss.backward()
    fast = {name: parameter.grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    of_base, of_heads, num = slow_terms(base, heads, batch)
    (of_base + 0.3 * math.sin(math.pi / 4) * of_heads).backward()
    assert float(part.base_loss) == pytest.approx(of_base.item()) and float(part.base_count) == num
    assert float(part.loss_K.sum()) == pytest.approx(of_heads.item())
    for name, parameter in parameters.items():
        torch.testing.assert_close(fast[name], parameter.grad, rtol=1e-8, atol=1e-10)


def test_only_answers_hold_the_base(tiny_llama_folder: Path) -> None:
    base = make_base(tiny_llama_folder, dropout=0.0)
    for parameter in adapter_parameters(base).values():
        parameter.data += 0.05
    heads = build_heads(plain_heads(num_heads=1), base.lm_head_weight)
    batch = make_batch(3, rows=1, length=12)
    batch.is_target_BT[:] = False
    batch.is_target_BT[0, 7] = True
    part = medusa2_loss(base, heads, batch, ObjectiveConfig(), Stage(2, 0, 4))
    assert part.base_count == 1 and part.count_K.tolist() == [1.0]
    batch.ids_BT[0, 8:] = 5  # what comes after the only target has no part in it
    again = medusa2_loss(base, heads, batch, ObjectiveConfig(), Stage(2, 0, 4))
    assert torch.equal(part.loss, again.loss)


def test_stage_one_is_medusa1_on_the_base_as_it_was(tiny_llama_folder: Path) -> None:
    base = make_base(tiny_llama_folder)
    plain = load_base(BaseConfig(path=str(tiny_llama_folder), dtype="float32", device="cpu"))
    for parameter in adapter_parameters(base).values():
        parameter.data += 0.3
    heads = build_heads(plain_heads(num_heads=2), base.lm_head_weight)
    config = ObjectiveConfig(kind="medusa2")
    part = medusa2_loss(base, heads, make_batch(3), config, Stage(1, 0, 4))
    expected = medusa1_loss(plain, heads, make_batch(3), config)
    assert torch.equal(part.loss, expected.loss) and part.base_count == 0


def test_held_out_numbers_say_how_far_the_base_moved(tiny_llama_folder: Path) -> None:
    base = make_base(tiny_llama_folder)
    heads = build_heads(plain_heads(num_heads=2), base.lm_head_weight)
    config = ObjectiveConfig(kind="medusa2")
    assert evaluate_joint(base, heads, [make_batch(3)], 1, config)["base_kl_nats"] == pytest.approx(0, abs=1e-6)
    for parameter in adapter_parameters(base).values():
        parameter.data += 0.1
    assert evaluate_joint(base, heads, [make_batch(3)], 1, config)["base_kl_nats"] > 1e-3


# Runs


def test_adapters_stand_still_in_stage_one_and_learn_in_stage_two(tiny_llama_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_llama_folder, tmp_path / "run")
    frozen = [p.clone() for name, p in trainer.base.model.named_parameters() if ".lora_" not in name]
    start = weights(trainer)
    rates = []
    for _ in range(4):
        trainer.train_step()
        rates.append([group["lr"] / group["lr_multiplier"] for group in trainer.optimizer.param_groups])
    border = weights(trainer)
    for _ in range(4):
        trainer.train_step()
        rates.append([group["lr"] / group["lr_multiplier"] for group in trainer.optimizer.param_groups])
    end = weights(trainer)
    for name in start:
        is_adapter = name.startswith("adapter.")
        assert torch.equal(start[name], border[name]) == is_adapter, name
        assert not torch.equal(border[name], end[name]), name
    now = [p for name, p in trainer.base.model.named_parameters() if ".lora_" not in name]
    assert all(torch.equal(a, b) for a, b in zip(frozen, now, strict=True))
    assert rates[0] == pytest.approx([1e-2] * 3) and rates[4] == pytest.approx(rates[0])  # each stage warms up anew
    assert rates[3] == pytest.approx([5e-4] * 3) and rates[7] == pytest.approx(rates[3])
    assert [group["lr_multiplier"] for group in trainer.optimizer.param_groups] == [4.0, 4.0, 1.0]


def test_the_folder_holds_heads_and_adapter_and_decodes_as_without_drafts(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "adapter", "heads.json", "heads.safetensors", "metrics.jsonl", "resume",
    }  # fmt: skip
    description = read_description(finished)
    assert description["adapter"] == "adapter" and description["objective"]["kind"] == "medusa2"
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert ["base_kl_nats" in record for record in records] == [False, False, True, True]
    assert all("held_out_base_kl_nats" in records[i] for i in (1, 3))
    engine = Engine.load(finished, device="cpu", tree="chain")
    prompts = [[40, 41, 42], [50], [60, 3]]
    answers = [row.ids for row in engine.generate(prompts, max_new_tokens=12)]
    assert answers == [row.ids for row in Engine(engine.base, drafter="none").generate(prompts, max_new_tokens=12)]


@pytest.mark.parametrize("number", [5, 7, 11], ids=["in stage one", "in the last step of stage one", "in stage two"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    tiny_llama_folder: Path, finished: Path, tmp_path: Path, number: int
) -> None:
    def interrupt(at: int) -> None:
        if at == number:
            os.kill(os.getpid(), signal.SIGTERM)

    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        make_trainer(tiny_llama_folder, run, interrupt).fit()
    again = make_trainer(tiny_llama_folder, run, resume=True)
    assert again.step == (number + 1) // 2
    again.fit()
    for name in ("heads.safetensors", "adapter/adapter_model.safetensors"):
        assert (run / name).read_bytes() == (finished / name).read_bytes(), name
    drop = "tokens_per_s"
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (run, finished)]
    records = [[{k: v for k, v in json.loads(line).items() if k != drop} for line in of_one] for of_one in lines]
    assert records[0] == records[1]


def test_medusa2_without_adapters_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    heads = build_heads(plain_heads(num_heads=1), tiny_base.lm_head_weight)
    with pytest.raises(UserError, match="trains adapters of the base; it has none"):
        Trainer(tiny_base, heads, ObjectiveConfig(kind="medusa2"), OptimConfig(), MemoryStream(), [], tmp_path / "run")


# The scripts


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("medusa2")
    rows = [{"text": f"row {i}: " + "the quick brown fox jumps over the lazy dog " * 3} for i in range(40)]
    (place / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tiny_llama(place / "base")
    return place


@pytest.fixture(scope="session")
def arguments(place: Path) -> list[str]:
    return [
        "base=hf", f"base.path={place}/base", "base.quantization=nf4", "base.dtype=float32", "base.device=cpu",
        "objective=medusa2", "lora.rank=4", "data=files", f"data.files={place}/texts.jsonl", f"output={place}/runs",
        f"regenerate.output={place}/written", "data.block_size=64", "data.batch_size=2", "data.held_out_one_in=4",
        "regenerate.num_prompts=12", "regenerate.prompt_tokens=8", "regenerate.new_tokens=16", "heads.num_heads=2",
        "optim.num_steps=4", "optim.eval_batches=1", "optim.lr=1e-2", "optim.gradient_checkpointing=true",
        "calibrate.num_prompts=3", "calibrate.prompt_tokens=8", "calibrate.new_tokens=12",
        "calibrate.node_counts=[1,2,4]", "calibrate.repeats=1", "calibrate.context_tokens=16", "evaluate.num_prompts=2",
        "evaluate.max_new_tokens=8", "evaluate.repeats=1", "threads=1",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def trained(arguments: list[str]) -> Result:
    pytest.importorskip("bitsandbytes")
    result = run_script("train/run.py", *arguments, "name=one")
    assert result.status == 0, result.err
    return result


def test_the_whole_run_is_measured_with_the_saved_adapter_on_the_4_bit_base(trained: Result, place: Path) -> None:
    assert (trained.last_line["identical"], trained.last_line["total"]) == (2, 2)
    run = place / "runs/one"
    assert read_description(run)["base"]["quantization"] == "nf4"
    assert read_json(run / "report.json")["training"]["base_kl_nats"] > 0
    assert "adapters" in (run / "README.md").read_text()


def test_every_script_opens_the_folder_with_its_adapter(trained: Result, place: Path) -> None:
    run = place / "runs/one"
    export = run_script("infer/export.py", f"checkpoint={run}", f"output={place}/out")
    assert export.status == 0, export.err
    assert (place / "out/adapter/adapter_model.safetensors").is_file()
    common = [f"checkpoint={place}/out", "threads=1", "base.device=cpu", "base.dtype=float32"]
    (place / "prompts.txt").write_text("row 1: the quick\nrow 2:\n")
    evaluated = run_script("infer/eval.py", *common, f"prompts={place}/prompts.txt", "max_new_tokens=12")
    assert evaluated.status == 0, evaluated.err
    assert evaluated.last_line["evaluation"]["identical"] == evaluated.last_line["evaluation"]["total"] == 2
    merged = run_script("infer/eval.py", *common, "base.merge_adapter=true", f"prompts={place}/prompts.txt",
                        "max_new_tokens=12")  # fmt: skip
    assert merged.status == 0, merged.err
    assert merged.last_line["evaluation"]["identical"] == 2 and "rounded to 4 bits" in merged.err
    timed = run_script("infer/bench.py", *common, f"prompts={place}/prompts.txt", "max_new_tokens=8", "repeats=1",
                       "contenders=[euryale,ar,hf_generate]")  # fmt: skip
    assert timed.status == 0, timed.err
    answer = run_script("infer/run.py", *common, "prompt=row 3", "max_new_tokens=8")
    assert answer.status == 0, answer.err
    fitted = run_script("infer/calibrate.py", *common, f"prompts={place}/prompts.txt", "calibrate.num_prompts=2",
                        "calibrate.new_tokens=8", "calibrate.node_counts=[1,2]", "calibrate.repeats=1",
                        "calibrate.context_tokens=16")  # fmt: skip
    assert fitted.status == 0, fitted.err


def test_adapters_that_match_nothing_are_refused_before_anything_is_written(arguments: list[str], place: Path) -> None:
    result = run_script("train/run.py", *arguments, "name=wrong", "lora.targets=[query]")
    assert result.status == 2 and "query" in result.err and "q_proj" in result.err and "Traceback" not in result.err
    assert not (place / "runs/wrong").exists()


def test_a_peer_s_export_says_that_the_adapter_belongs_to_it(arguments: list[str], place: Path) -> None:
    peers = ["heads=medusa", "heads.root_token=false", "data.regenerate=false", "optim.num_steps=2"]
    result = run_script("train/run.py", *arguments, *peers, "name=peer")
    assert result.status == 0, result.err
    export = run_script("infer/export.py", f"checkpoint={place}/runs/peer", "format=vllm", f"output={place}/vllm")
    assert export.status == 0, export.err
    text = (place / "vllm/README.md").read_text()
    assert "adapter" in text and (place / "vllm/adapter/adapter_model.safetensors").is_file()
