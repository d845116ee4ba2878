"""Settings of calibration and of the benchmarks, and bounds of the doctor and of the breadth prompts."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field

from euryale.decoding.config import MOST_NODES, AnswerConfig
from euryale.decoding.sampling import Sampling
from euryale.errors import MOST_AT_ONCE, MOST_REPEATS, MOST_ROWS, MOST_TOKENS, UserError, check_share, check_within

LLAMA_CPP = "llama_cpp"
CONTENDERS = ("euryale", "ar", "hf_generate", "hf_generate_static", "hf_prompt_lookup", LLAMA_CPP)  # contenders.py
DEFAULT_CONTENDERS = ("euryale", "ar", "hf_generate", "hf_prompt_lookup")
MEASURED_A_KIND = 4  # breadth prompts of each kind at most: the other four are calibrated on

FEWEST_TOKENS = 64  # of a part of the answers whose accuracy the doctor tells apart


@dataclass
class CalibrateConfig:
    """What calibration counts and times."""

    num_prompts: int = 32
    breadth_share: float = 0.5
    prompt_tokens: int = 48
    new_tokens: int = 128
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.8])
    max_rank: int = 10
    node_counts: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
    repeats: int = 15
    context_tokens: int = 128
    batch_size: int = 16
    seed: int = 1

    def check(self) -> None:
        """Raises UserError for settings out of range."""
        if not self.node_counts or min(self.node_counts) < 1 or 1 not in self.node_counts:
            raise UserError(
                f"calibrate.node_counts must be positive numbers, 1 (no tree) among them; got {self.node_counts}."
            )
        check_within(1, MOST_NODES, "calibrate.", node_counts=max(self.node_counts), max_rank=self.max_rank)
        check_within(1, MOST_ROWS, "calibrate.", num_prompts=self.num_prompts)
        tokens = ("prompt_tokens", "new_tokens", "context_tokens")
        check_within(1, MOST_TOKENS, "calibrate.", **{name: getattr(self, name) for name in tokens})
        check_within(1, MOST_AT_ONCE, "calibrate.", batch_size=self.batch_size)
        check_within(1, MOST_REPEATS, "calibrate.", repeats=self.repeats)
        check_share("calibrate.breadth_share", self.breadth_share)
        if not self.temperatures:
            raise UserError("calibrate.temperatures must not be empty. Give at least one, for example [0.0].")
        for temperature in self.temperatures:
            Sampling(temperature)


@dataclass
class KernelShapes:
    """Sizes of the model and cache that kernels are timed at; of Llama-3-8B."""

    batch: int = 1
    context: int = 1024
    heads: int = 32
    kv_heads: int = 8
    head_size: int = 128
    hidden: int = 4096
    inner: int = 14336
    layers: int = 32
    vocab: int = 128256


@dataclass
class StepsConfig:
    """Which steps are timed (step_ways.py), and how often."""

    ways: list[str] = field(default_factory=list)
    nodes: list[int] = field(default_factory=lambda: [1, 8, 16, 32, 64])
    context_tokens: int = 900
    repeats: int = 7
    generate_tokens: int = 64

    def check(self) -> None:
        """Raises UserError for numbers out of range."""
        if not self.nodes or not all(1 <= num <= 64 for num in self.nodes):
            raise UserError(f"steps.nodes must be numbers from 1 to 64; got {self.nodes}.")
        tokens = {"context_tokens": self.context_tokens, "generate_tokens": self.generate_tokens}
        check_within(2, MOST_TOKENS, "steps.", **tokens)
        check_within(1, MOST_REPEATS, "steps.", repeats=self.repeats)


@dataclass(frozen=True)
class BenchSettings:
    """What every contender is asked."""

    contenders: Sequence[str] = DEFAULT_CONTENDERS
    repeats: int = 3
    max_new_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0

    @staticmethod
    def of(config: AnswerConfig, contenders: Sequence[str], repeats: int) -> "BenchSettings":
        """Those of a script. Raises UserError as `check` does."""
        settings = BenchSettings(contenders, repeats, config.max_new_tokens, config.sampling(), config.seed)
        settings.check()
        return settings

    def check(self) -> None:
        """Raises UserError for unknown names or numbers out of range."""
        unknown = [name for name in self.contenders if name not in CONTENDERS]
        if unknown or not self.contenders:
            raise UserError(f"contenders must be of {', '.join(CONTENDERS)}; got {', '.join(unknown) or 'none'}.")
        check_within(1, MOST_REPEATS, repeats=self.repeats)
        check_within(1, MOST_TOKENS, max_new_tokens=self.max_new_tokens)
        if LLAMA_CPP in self.contenders:
            check_llama_cpp(self.sampling)
        others = [name for name in self.contenders if name.startswith("hf_")]
        if others and not self.sampling.is_known_to_transformers:
            raise UserError(
                f"contenders=[{','.join(self.contenders)}]: transformers has no presence and frequency penalties "
                f"and no grammars, so its text would be another. Leave out: {', '.join(others)}."
            )


def check_llama_cpp(sampling: Sampling) -> None:
    """Raises UserError where the package is missing, or for anything but greedy decoding."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise UserError(
            "contenders has llama_cpp, which needs the package xllamacpp, and it is not installed. Install it: "
            "pip install --only-binary=:all: xllamacpp, or leave llama_cpp out."
        )
    if sampling != Sampling():
        raise UserError("contenders: llama_cpp is timed with temperature=0 and no other sampling. Leave it out.")
