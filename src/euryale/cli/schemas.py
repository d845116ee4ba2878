"""Settings that each script takes, and their types.

Every component keeps its settings in a dataclass of its own; here they nest into one schema a script. The values
stand in conf/*.yaml, a comment with each.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from euryale.base.config import BaseConfig, base_of_checkpoint
from euryale.cli.doctor_schema import DoctorConfig
from euryale.cli.kernel_schemas import BenchKernelsConfig, ListKernelsConfig
from euryale.cli.load_schema import LoadConfig
from euryale.cli.serve_schema import ServeConfig, ServeRayConfig
from euryale.cli.train_schemas import BenchStepsConfig, MeasureConfig, RegenerateScriptConfig, TrainConfig
from euryale.data.config import DataConfig, data_of_checkpoint
from euryale.decoding.config import AnswerConfig
from euryale.decoding.stop_strings import check_stop
from euryale.errors import MOST_AT_ONCE, MOST_REPEATS, UserError, check_least, check_option, check_threads, check_within
from euryale.evaluation.config import BenchSettings, CalibrateConfig
from euryale.report.ranking import check_metric
from euryale.system.files import check_writable
from euryale.system.paths import user_path

EXPORT_FORMATS = ("euryale", "vllm", "medusa", "tgi")  # export.py


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
        BenchSettings.of(self, self.contenders, self.repeats)
        check_least(1, limit=self.limit, row_budget=self.row_budget)
        check_within(1, MOST_AT_ONCE, batch=self.batch)
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
        BenchSettings.of(self, self.contenders, self.repeats)
        check_least(1, limit=self.limit)


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
        check_least(1, limit=self.limit)
        check_within(1, MOST_REPEATS, repeats=self.repeats)
        check_within(1, MOST_AT_ONCE, batch_size=self.batch_size)
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

    def check(self) -> None:
        """Raises UserError for numbers out of range."""
        self.base.check()
        self.calibrate.check()
        check_threads(self.threads)


@dataclass
class ExportConfig:
    """infer/export.py"""

    checkpoint: str = "last"
    base: BaseConfig = field(default_factory=base_of_checkpoint)
    format: str = "euryale"
    output: str | None = None

    def check(self) -> None:
        """Raises UserError for an unknown format."""
        self.base.check()
        check_option("format", self.format, EXPORT_FORMATS)


@dataclass
class ImportHeadsConfig:
    """infer/import_heads.py"""

    source: str | None = None
    base: BaseConfig = field(default_factory=base_of_checkpoint)
    output: str | None = None
    threads: int = 0

    def check(self) -> None:
        """Raises UserError without a source."""
        if self.source is None:
            raise UserError("source must be a folder with Medusa heads; got null. Give source=DIR.")
        self.base.check()
        check_threads(self.threads)


@dataclass
class RankConfig:
    """infer/rank.py"""

    runs: str = "checkpoints"
    metric: str = "tau"
    output: str | None = None

    def check(self) -> None:
        """Raises UserError for an unknown metric."""
        check_metric(self.metric)


@dataclass
class PlotSweepConfig:
    """infer/plot_sweep.py"""

    results: str | None = None
    by: str | None = None
    output: str | None = None

    def check(self) -> None:
        """Raises UserError without results, and for a picture of another kind."""
        if self.results is None:
            raise UserError("results=FILE.jsonl is missing: the file that infer/bench.py output=FILE.jsonl adds to.")
        if self.output is not None and Path(self.output).suffix != ".png":
            raise UserError(f"output must be a .png file; got {self.output}.")


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
