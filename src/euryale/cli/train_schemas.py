"""Settings of the scripts of train/ and of infer/bench_steps.py, and what can be seen of them alone.

`check` refuses what needs neither torch nor a file to be seen; preflight.py looks at the rest of a run.
"""

from dataclasses import dataclass, field, fields, replace

from euryale.base.config import BaseConfig, LoraConfig, ShapeConfig
from euryale.data.config import DataConfig
from euryale.decoding.sampling import Sampling
from euryale.errors import (
    MOST_REPEATS,
    MOST_ROWS,
    MOST_TOKENS,
    UserError,
    check_option,
    check_threads,
    check_within,
)  # fmt: skip
from euryale.evaluation.config import MEASURED_A_KIND, CalibrateConfig, StepsConfig
from euryale.heads.config import HeadsConfig
from euryale.regenerate.config import RegenerateConfig
from euryale.report.ranking import check_metric
from euryale.system import processes
from euryale.training.config import ObjectiveConfig, OptimConfig, ScratchConfig, wandb_mode

MAX_SEED = 2**62  # rows and prompts are numbered upwards from a seed, and noise takes 63 bits
PARALLEL = ("ddp", "fsdp")
MEASURED = ("medusa1", "medusa2")  # objectives that train parts of a frozen base


@dataclass
class EvaluateConfig:
    """How much the run's own evaluation looks at."""

    num_prompts: int = 12
    max_new_tokens: int = 128
    temperature: float | None = None
    repeats: int = 2
    breadth_prompts: int = 2

    def check(self) -> None:
        """Raises UserError for numbers out of range."""
        check_within(1, MOST_ROWS, "evaluate.", num_prompts=self.num_prompts)
        check_within(1, MOST_TOKENS, "evaluate.", max_new_tokens=self.max_new_tokens)
        check_within(1, MOST_REPEATS, "evaluate.", repeats=self.repeats)
        if not 0 <= self.breadth_prompts <= MEASURED_A_KIND:
            raise UserError(
                f"evaluate.breadth_prompts must be from 0 to {MEASURED_A_KIND}, the prompts of a kind that are not "
                f"calibrated on; got {self.breadth_prompts}."
            )
        Sampling(self.temperature or 0.0)


@dataclass
class RegenerateScriptConfig:
    """train/regenerate.py"""

    base: BaseConfig = field(default_factory=BaseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    regenerate: RegenerateConfig = field(default_factory=RegenerateConfig)
    threads: int = 0

    def check(self) -> None:
        """Raises UserError for what no base and no data can do."""
        self.base.check()
        self.data.check()
        self.regenerate.check()
        _check_seed("regenerate.seed", self.regenerate.seed)
        check_threads(self.threads)


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

    def check(self) -> None:
        super().check()
        for part in (self.heads, self.objective, self.lora, self.optim, self.calibrate, self.evaluate):
            part.check()
        _check_seed("seed", self.seed)
        _check_seed("calibrate.seed", self.calibrate.seed)


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

    def check(self) -> None:
        super().check()
        wandb_mode(self.wandb)
        check_metric(self.metric)
        if self.metric == "tau_16" and 16 not in self.calibrate.node_counts:
            raise UserError(
                "metric=tau_16 is counted for a tree of 16 nodes; there is none in "
                f"calibrate.node_counts={self.calibrate.node_counts}. Add 16, or rank by metric=tau."
            )
        check_parallel(self)
        is_pretraining = self.objective.kind == "pretrain"
        if self.scratch.enabled:
            self.scratch.check()
            if not is_pretraining:
                raise UserError(
                    "scratch.enabled=true makes a base to be pretrained. Use recipe=pretrain_tiny, or false."
                )
        if is_pretraining and self.heads.init is not None:
            raise UserError("heads.init names heads, and objective=pretrain trains none. Leave it out.")
        if is_pretraining and self.optim.name == "muon":
            raise UserError("optim=muon moves the matrices of heads, and objective=pretrain has none. Add optim=adamw.")
        if self.base.quantization == "int4" and self.objective.kind != "medusa1":
            raise UserError(
                "base.quantization=int4 is for decoding: the base writes the text in 4 bits, and its heads learn from "
                f"states in 16. objective must be medusa1, whose base stays as it is; got {self.objective.kind}. Use "
                "base.quantization=none."
            )
        if not is_pretraining and self.calibrate.new_tokens < self.heads.num_heads:
            raise UserError(
                f"calibrate.new_tokens must be at least heads.num_heads={self.heads.num_heads}, to see all heads at "
                f"work; got {self.calibrate.new_tokens}."
            )


@dataclass
class MeasureConfig(RecipeConfig):
    """train/measure.py: what a run is made of, without what only a run's result depends on."""

    shape: ShapeConfig = field(default_factory=ShapeConfig)
    objectives: list[str] = field(default_factory=lambda: ["medusa1", "medusa2"])
    warm_up: int = 2
    steps: int = 5
    output: str | None = None

    def check(self) -> None:
        super().check()
        self.shape.check()
        if self.base.quantization == "int4":
            raise UserError(
                "base.quantization=int4 is for decoding, and train/measure.py measures training, which goes through "
                "weights in 16 or 32 bits. Use base.quantization=none."
            )
        check_within(0, MOST_REPEATS, warm_up=self.warm_up)
        check_within(1, MOST_REPEATS, steps=self.steps)
        unknown = [name for name in self.objectives if name not in MEASURED]
        if unknown or not self.objectives:
            raise UserError(f"objectives must be among {', '.join(MEASURED)}; got [{','.join(self.objectives)}].")
        if processes.count() > 1:
            raise UserError(
                f"{processes.count()} processes were started; measuring takes one: every process of a run takes as "
                "much memory as it does. Leave torchrun out."
            )

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

    def check(self) -> None:
        super().check()
        self.shape.check()
        self.steps.check()


def check_parallel(config: TrainConfig) -> None:
    """Raises UserError for what a divided base (parallel=fsdp) cannot do: it trains heads, and writes nothing."""
    check_option("parallel", config.parallel, PARALLEL)
    if config.parallel == "ddp":
        return
    if processes.count() == 1:
        raise UserError(
            "parallel=fsdp divides the base among processes, and there is one. Start several: torchrun "
            "--nproc_per_node=N train/run.py ..., or use parallel=ddp."
        )
    if config.objective.kind != "medusa1":
        raise UserError(
            f"parallel=fsdp trains heads of a frozen base: objective must be medusa1; got {config.objective.kind}. "
            "Adapters and bases are trained with parallel=ddp, where every process holds the base "
            "(base.quantization=nf4 makes it small)."
        )
    if config.base.quantization != "none":
        raise UserError(
            f"parallel=fsdp cannot divide a base with base.quantization={config.base.quantization}. Use parallel=ddp"
            f"{' (a 4-bit base is a quarter of the size)' if config.base.quantization == 'nf4' else ''}, or "
            "base.quantization=none."
        )
    if config.data.regenerate and config.data.kind != "regenerated" and config.regenerate.url is None:
        raise UserError(
            "parallel=fsdp: no process holds the whole base, so it cannot write its training text. Let a server of the "
            "base write it (regenerate.url=http://HOST:8000/v1), or train on a set that is there (data=regenerated), "
            "or on the rows themselves (data.regenerate=false)."
        )


def _check_seed(name: str, seed: int) -> None:
    if not 0 <= seed < MAX_SEED:
        raise UserError(f"{name} must be a whole number from 0 to 2**62 - 1; got {seed}.")
