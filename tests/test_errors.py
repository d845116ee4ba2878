"""Checks that many settings share, and the bounds of what a run can count to."""

from typing import Any

import pytest

from euryale.base.config import BaseConfig, ShapeConfig
from euryale.cli.kernel_schemas import BenchKernelsConfig
from euryale.cli.load_schema import LoadConfig
from euryale.cli.schemas import SCHEMAS, BenchConfig, CompareConfig, EvalConfig, InferConfig
from euryale.cli.train_schemas import EvaluateConfig, MeasureConfig
from euryale.data.config import DataConfig
from euryale.errors import UserError, check_threads, check_within
from euryale.evaluation.config import CalibrateConfig, StepsConfig
from euryale.regenerate.config import RegenerateConfig
from euryale.training.config import OptimConfig, ScratchConfig

SLIP = 999_999_999_999
WHOLE_SHAPE = dict.fromkeys(
    ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "max_length"), 8
)


def test_a_number_is_within_its_bounds() -> None:
    check_within(0, 3, "part.", low=0, high=3, none=None)
    with pytest.raises(UserError, match=r"^part.low must be at least 0; got -1\.$"):
        check_within(0, 3, "part.", low=-1)
    with pytest.raises(UserError, match=r"^part.high must be at most 3; got 4\.$"):
        check_within(0, 3, "part.", high=4)
    with pytest.raises(UserError, match=r"at least 0; got nan"):
        check_within(0, 3, number=float("nan"))
    for threads in (-1, 2000):
        with pytest.raises(UserError, match=f"threads must be from 0 to 1024; got {threads}"):
            check_threads(threads)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_script_checks_its_settings(name: str) -> None:
    """The defaults pass, but where a script needs to be given something."""
    needs = {"import_heads": "source", "plot_sweep": "results", "doctor": "prompts"}
    if name not in needs:
        fits = {"replicas": 1} if name == "serve_ray" else {}  # two ask for two cores
        SCHEMAS[name](**fits).check()
        return
    with pytest.raises(UserError, match=needs[name]):
        SCHEMAS[name]().check()


@pytest.mark.parametrize(
    "schema, names",
    [
        (RegenerateConfig, ["num_prompts", "prompt_tokens", "new_tokens", "batch_size"]),
        (DataConfig, ["questions", "question_tokens", "block_size", "batch_size", "shuffle_window"]),
        (OptimConfig, ["num_steps", "gradient_accumulation", "eval_batches"]),
        (CalibrateConfig, ["num_prompts", "new_tokens", "max_rank", "repeats", "context_tokens", "batch_size"]),
        (EvaluateConfig, ["num_prompts", "max_new_tokens", "repeats"]),
        (ScratchConfig, ["vocab_size", "hidden_size", "num_layers", "max_length"]),
        (StepsConfig, ["context_tokens", "repeats", "generate_tokens"]),
        (MeasureConfig, ["warm_up", "steps"]),
        (InferConfig, ["max_new_tokens"]),
        (BenchConfig, ["repeats", "max_new_tokens"]),
        (CompareConfig, ["repeats"]),
        (EvalConfig, ["repeats", "batch_size"]),
        (LoadConfig, ["requests", "max_tokens"]),
        (BenchKernelsConfig, ["repeats"]),
    ],
)
def test_a_count_that_nobody_means_is_refused(schema: type, names: list[str]) -> None:
    """It would end for want of memory, or in years."""
    for name in names:
        with pytest.raises(UserError, match=rf"(?<![a-z]){name} must be at most \d+; got {SLIP}"):
            schema(**{name: SLIP}).check()


@pytest.mark.parametrize("changes", [{"num_layers": SLIP}, {"vocab_size": SLIP}])
def test_a_shape_has_sizes_of_models(changes: dict[str, Any]) -> None:
    ShapeConfig("llama", tied=True, **WHOLE_SHAPE | {"num_heads": 2, "num_kv_heads": 2}).check()
    with pytest.raises(UserError, match=f"shape.{next(iter(changes))} must be at most"):
        ShapeConfig("llama", tied=True, **WHOLE_SHAPE | changes).check()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dtype": "float8"}, "base.dtype must be one of auto, float32, bfloat16, float16; got float8"),
        ({"quantization": "int3"}, "base.quantization must be one of auto, none, nf4, int4; got int3"),
        ({"forward": "fast"}, "base.forward must be one of auto, exact, plain; got fast"),
        ({"nf4_runtime": "own"}, "base.nf4_runtime must be one of auto, kernel, expand, bnb; got own"),
        ({"tensor_parallel": 0}, "base.tensor_parallel must be at least 1; got 0"),
    ],
)
def test_an_unknown_way_to_load_a_base_is_refused_before_it_is_loaded(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BaseConfig(**changes).check()
