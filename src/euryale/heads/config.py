"""Head designs: the settings of heads, and which of them go together."""

import math
from dataclasses import asdict, dataclass

from euryale.errors import UserError

KINDS = ("medusa", "hydra", "eagle")
BODIES = ("resblock", "mlp")
OUTPUTS = ("shared", "own", "lowrank")
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
            if value not in options:
                raise UserError(f"heads.{name}={value} is not known. Choose one of: {', '.join(options)}.")
        if not 1 <= self.num_heads <= 16:
            raise UserError(f"heads.num_heads={self.num_heads}: a number from 1 to 16 is needed (3 to 5 pay).")
        if not 1 <= self.num_layers <= 8:
            raise UserError(f"heads.num_layers={self.num_layers}: a number from 1 to 8 is needed (1 is usual).")
        if not 0.0 < self.width < math.inf:
            raise UserError(f"heads.width={self.width}: a positive multiple of the hidden size is needed.")
        if not 0.0 < self.vocab_share <= 1.0:
            raise UserError(f"heads.vocab_share={self.vocab_share}: a share above 0 and at most 1 is needed.")
        if self.output_rank < 1:
            raise UserError(f"heads.output_rank={self.output_rank}: a rank of at least 1 is needed (32 to 64 pay).")
        if not 0 <= self.induction <= MOST_INDUCTION:
            raise UserError(f"heads.induction={self.induction}: a number from 0 (off) to {MOST_INDUCTION} is needed.")
        if self.induction and not self.root_token:
            raise UserError(
                f"heads.induction={self.induction} looks for what followed the last known token, and with "
                "heads.root_token=false none is known. Use heads.induction=0, or root_token=true."
            )
        if self.vocab_min < 0:
            raise UserError(f"heads.vocab_min={self.vocab_min}: a number of tokens is needed, or 0.")
        if self.kind != "medusa" and not self.root_token:
            raise UserError(
                f"heads.kind={self.kind} reads the whole path, so heads.root_token=false cannot be. Use kind=medusa."
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
        """Whether what may follow a node depends on the path to it, or is the same for all nodes of a depth."""
        return self.kind != "medusa"
