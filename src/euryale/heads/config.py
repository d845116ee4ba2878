"""Head designs: the settings of heads, and which of them go together."""

import math
from dataclasses import asdict, dataclass

from euryale.errors import UserError, check_least, check_option

KINDS = ("medusa", "hydra", "eagle")
BODIES = ("resblock", "mlp")
OUTPUTS = ("shared", "own", "lowrank")
MOST_WIDTH = 64.0  # times the hidden size
MOST_RANK = 2**16  # above any hidden size: a matrix has no higher rank
MOST_INDUCTION = 3  # tokens of a suffix that is looked for
FEATURES = {"last": 1, "several": 3}  # how many states of the base a head reads


@dataclass
class HeadsConfig:
    """Head design; the values in conf/heads are the documented defaults."""

    kind: str = "hydra"
    num_heads: int = 4
    num_layers: int = 1
    body: str = "mlp"
    width: float = 2.0
    output: str = "lowrank"
    output_rank: int = 64
    root_token: bool = True
    vocab_share: float = 0.25
    vocab_min: int = 1024
    features: str = "several"
    residual: bool = False
    induction: int = 3
    init: str | None = None  # a checkpoint whose heads are trained further: no part of the design

    def check(self) -> None:
        """Raises UserError for a value or combination that cannot be built."""
        for name, value, options in (
            ("kind", self.kind, KINDS),
            ("body", self.body, BODIES),
            ("output", self.output, OUTPUTS),
            ("features", self.features, tuple(FEATURES)),
        ):
            check_option(f"heads.{name}", value, options)
        if not 1 <= self.num_heads <= 16:
            raise UserError(f"heads.num_heads must be from 1 to 16; got {self.num_heads}. Use 3 to 5.")
        if not 1 <= self.num_layers <= 8:
            raise UserError(f"heads.num_layers must be from 1 to 8; got {self.num_layers}.")
        if not 0.0 < self.width <= MOST_WIDTH:
            raise UserError(
                f"heads.width must be above 0 and at most {MOST_WIDTH:g} times the hidden size; got {self.width}."
            )
        if not 0.0 < self.vocab_share <= 1.0:
            raise UserError(f"heads.vocab_share must be above 0 and at most 1; got {self.vocab_share}.")
        if not 1 <= self.output_rank <= MOST_RANK:
            raise UserError(f"heads.output_rank must be from 1 to {MOST_RANK}; got {self.output_rank}. 64 is usual.")
        if not 0 <= self.induction <= MOST_INDUCTION:
            raise UserError(f"heads.induction must be from 0 (off) to {MOST_INDUCTION}; got {self.induction}.")
        if self.induction and not self.root_token:
            raise UserError(
                f"heads.induction={self.induction} looks for what followed the last known token, and with "
                "heads.root_token=false none is known. Use heads.induction=0, or root_token=true."
            )
        check_least(0, "heads.", vocab_min=self.vocab_min)
        if self.kind != "medusa" and not self.root_token:
            raise UserError(
                f"heads.root_token must be true for heads.kind={self.kind}, which reads the path. Use kind=medusa."
            )
        design = {
            "body": self.body, "output": self.output, "num_layers": self.num_layers, "residual": self.residual,
            "induction": self.induction,
        }  # fmt: skip
        if self.kind == "eagle" and tuple(design.values()) != ("mlp", "shared", 1, True, 0):
            asked = ", ".join(f"heads.{name}={value}" for name, value in design.items()).lower()
            raise UserError(
                f"{asked} do not go with heads.kind=eagle: it is one layer with an mlp that moves the base's states, "
                "through the base's own output matrix. Leave them as in heads=eagle, or use kind=hydra."
            )

    def design(self) -> dict[str, str | int | float | bool]:
        """What a checkpoint says of its heads: every setting but where their training began."""
        return {name: value for name, value in asdict(self).items() if name != "init"}

    def num_draft_tokens(self, vocab_size: int) -> int:
        """How many tokens of a vocabulary can be drafted."""
        return min(vocab_size, max(math.ceil(vocab_size * self.vocab_share), self.vocab_min))

    def num_known_tokens(self, k: int) -> int:
        """How many tokens after t head k is told: root and path for hydra, root or nothing for medusa.

        One for eagle: those before it are in the layer's own states and keys.
        """
        if self.kind == "hydra":
            return k + 1
        return int(self.root_token)

    def num_tokens_read(self, k: int) -> int:
        """Whose embeddings head k reads side by side: the known tokens, and the one that followed them earlier."""
        return self.num_known_tokens(k) + bool(self.induction)

    @property
    def reads_path(self) -> bool:
        """Whether the guesses below a node depend on the path to it; else they are those of its depth."""
        return self.kind != "medusa"
