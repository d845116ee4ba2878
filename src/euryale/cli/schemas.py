"""Settings that each script takes, and their types.

Every component keeps its settings in a dataclass of its own; here they nest into one schema a script. The values
stand in conf/*.yaml, a comment with each.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from euryale.base.config import BaseConfig, base_of_checkpoint
from euryale.base.lora import LoraConfig
from euryale.base.shape import ShapeConfig
from euryale.cli.doctor_schema import DoctorConfig
from euryale.cli.kernel_schemas import BenchKernelsConfig, ListKernelsConfig
from euryale.cli.load_levels import LoadConfig
from euryale.cli.serve_schema import ServeConfig, ServeRayConfig
from euryale.data.sources import DataConfig, data_of_checkpoint
from euryale.decoding.config import AnswerConfig
from euryale.decoding.stop_strings import check_stop
from euryale.errors import UserError, check_least
from euryale.evaluation.config import CalibrateConfig, StepsConfig
from euryale.heads.config import HeadsConfig
from euryale.regenerate.config import RegenerateConfig
from euryale.system.files import check_writable
from euryale.system.paths import user_path
from euryale.training.new_base import ScratchConfig
from euryale.training.objective import ObjectiveConfig
from euryale.training.optimizer import OptimConfig


@dataclass
class EvaluateConfig:
    """How much the run's own evaluation looks at."""

    num_prompts: int = 12
    max_new_tokens: int = 128
    temperature: float | None = None
    repeats: int = 2
    breadth_prompts: int = 2


@dataclass
class RegenerateScriptConfig:
    """train/regenerate.py"""

    base: BaseConfig = field(default_factory=BaseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    regenerate: RegenerateConfig = field(default_factory=RegenerateConfig)
    threads: int = 0


@dataclass
class RecipeConfig(RegenerateScriptConfig):
    """What a run is made of, so that a recipe fits every script that has it."""

    heads: HeadsConfig = field(default_factory=HeadsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    seed: int = 0
    check_memory: bool = True
    deterministic: bool = False


@dataclass
class TrainConfig(RecipeConfig):
    """train/run.py"""

    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    output: str = "checkpoints"
    name: str | None = None
    resume: str | None = None
    parallel: str = "ddp"
    metric: str = "tau"
    wandb: str = "off"


@dataclass
class MeasureConfig(RecipeConfig):
    """train/measure.py: what a run is made of, without what only a run's result depends on."""

    shape: ShapeConfig = field(default_factory=ShapeConfig)
    objectives: list[str] = field(default_factory=lambda: ["medusa1", "medusa2"])
    warm_up: int = 2
    steps: int = 5
    output: str | None = None

    def run_of(self, kind: str) -> TrainConfig:
        """The run of this objective that is measured: of medusa2 its second stage, which takes the most."""
        recipe = {setting.name: getattr(self, setting.name) for setting in fields(RecipeConfig)}
        return TrainConfig(**recipe | {"objective": replace(self.objective, kind=kind, stage_one_share=0.0)})


@dataclass
class BenchStepsConfig(RecipeConfig):
    """infer/bench_steps.py: the base's sizes and the heads of a recipe, and which steps are timed."""

    shape: ShapeConfig = field(default_factory=ShapeConfig)
    steps: StepsConfig = field(default_factory=StepsConfig)
    output: str | None = None


@dataclass
class InferConfig(AnswerConfig):
    """infer/run.py"""

    prompt: str | None = None
    stop: Any = field(default_factory=list)  # one string or several
    stop_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    steps: str | None = None

    def check(self) -> None:
        super().check()
        self.stops()
        check_steps(self.steps)

    def stops(self) -> tuple[str, ...]:
        """Raises UserError for an empty string, and for what a command line reads as something else than text."""
        asked = self.stop if isinstance(self.stop, list) else [] if self.stop is None else [self.stop]
        for text in asked:
            if not isinstance(text, str) and type(text) is not int:  # on a command line 5 is a number
                raise UserError(
                    f"""stop must be text; got {text!r}. Put text into two kinds of quotes: 'stop="..."'."""
                )
        return check_stop([str(text) for text in asked])


@dataclass
class BenchConfig(AnswerConfig):
    """infer/bench.py"""

    prompts: str | None = None
    limit: int = 20
    repeats: int = 3
    batch: int = 1
    row_budget: int | None = None
    contenders: list[str] = field(default_factory=lambda: ["euryale", "ar", "hf_generate", "hf_prompt_lookup"])
    output: str | None = None
    steps: str | None = None

    def check(self) -> None:
        super().check()
        check_least(1, limit=self.limit, repeats=self.repeats, batch=self.batch, row_budget=self.row_budget)
        if self.batch > self.limit:
            raise UserError(f"batch must be at most limit={self.limit}, the number of prompts; got {self.batch}.")
        check_steps(self.steps)


@dataclass
class CompareConfig(AnswerConfig):
    """infer/compare.py"""

    questions: list[str] = field(default_factory=list)
    prompts: str | None = None
    limit: int = 20
    repeats: int = 1
    contenders: list[str] = field(default_factory=lambda: ["hf_generate", "ar", "euryale"])
    output: str | None = None

    def check(self) -> None:
        super().check()
        check_least(1, limit=self.limit, repeats=self.repeats)


@dataclass
class EvalConfig(AnswerConfig):
    """infer/eval.py"""

    data: DataConfig = field(default_factory=data_of_checkpoint)
    prompts: str | None = None
    limit: int = 32
    batch_size: int = 8
    suite: str | None = None
    contenders: list[str] | None = None
    repeats: int = 3
    output: str | None = None

    def check(self) -> None:
        super().check()
        check_least(1, limit=self.limit, repeats=self.repeats, batch_size=self.batch_size)
        if self.contenders is not None and (self.suite is None or "euryale" not in self.contenders):
            raise UserError(
                f"contenders must be null without suite=NAME, and with it euryale among others; got "
                f"[{','.join(self.contenders)}]. infer/bench.py compares any contenders on prompts=FILE."
            )


def check_steps(file: str | None) -> None:
    """Raises UserError when lines could not be added to `steps=`."""
    if file is not None:
        check_writable(user_path(file, "steps").parent, f"steps={file}")


@dataclass
class CalibrateScriptConfig:
    """infer/calibrate.py: it decodes with trees of its own, so nothing else of EngineConfig is taken."""

    checkpoint: str = "last"
    base: BaseConfig = field(default_factory=base_of_checkpoint)
    data: DataConfig = field(default_factory=data_of_checkpoint)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    prompts: str | None = None
    coupled: bool = True
    threads: int = 0
    deterministic: bool = False


@dataclass
class ExportConfig:
    """infer/export.py"""

    checkpoint: str = "last"
    base: BaseConfig = field(default_factory=base_of_checkpoint)
    format: str = "euryale"
    output: str | None = None


@dataclass
class ImportHeadsConfig:
    """infer/import_heads.py"""

    source: str | None = None
    base: BaseConfig = field(default_factory=base_of_checkpoint)
    output: str | None = None
    threads: int = 0


@dataclass
class RankConfig:
    """infer/rank.py"""

    runs: str = "checkpoints"
    metric: str = "tau"
    output: str | None = None


@dataclass
class PlotSweepConfig:
    """infer/plot_sweep.py"""

    results: str | None = None
    by: str | None = None
    output: str | None = None


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "regenerate": RegenerateScriptConfig,
    "measure": MeasureConfig,
    "infer": InferConfig,
    "serve": ServeConfig,
    "serve_ray": ServeRayConfig,
    "load": LoadConfig,
    "bench": BenchConfig,
    "compare": CompareConfig,
    "eval": EvalConfig,
    "doctor": DoctorConfig,
    "calibrate": CalibrateScriptConfig,
    "export": ExportConfig,
    "import_heads": ImportHeadsConfig,
    "rank": RankConfig,
    "plot_sweep": PlotSweepConfig,
    "list_kernels": ListKernelsConfig,
    "bench_kernels": BenchKernelsConfig,
    "bench_steps": BenchStepsConfig,
}
