"""Settings of the data stage: which rows, how they are split, and the size of a batch."""

from dataclasses import dataclass, field
from typing import Any

from euryale.errors import (
    MOST_AT_ONCE,
    MOST_ROWS,
    MOST_TOKENS,
    UserError,
    check_least,
    check_option,
    check_share,
    check_within,
)

KINDS = ("stdlib", "files", "hub", "mix", "regenerated", "self")
MOST_SHUFFLED = 10**7  # rows of a window, all of which are held in memory


@dataclass
class DataConfig:
    """The data stage; conf/data/*.yaml explains each value. Only the settings of the chosen kind are read."""

    kind: str = "stdlib"
    # stdlib
    modules: str = "small"
    # files: one name or a list of them (the config library has no type for that)
    files: Any = ""
    text_separator: str = "auto"
    # hub
    repo: str = ""
    subset: str | None = None
    split: str = "train"
    data_files: Any = ""
    revision: str | None = None
    streaming: bool = True
    join_rows: bool = False
    num_retries: int = 6
    # mix
    mix: list[Any] = field(default_factory=list)
    # regenerated
    folder: str = ""
    # self: questions that the base writes
    questions: int = 2048
    question_tokens: int = 128
    followup_share: float = 0.25
    # every kind
    column: str | None = None
    on_error: str = "stop"
    held_out_one_in: int = 20
    shuffle_window: int = 512
    seed: int = 0
    block_size: int = 512
    batch_size: int = 2
    # the base continues these rows before heads are trained on them; read by train/run.py
    regenerate: bool = True

    def check(self) -> None:
        """Raises UserError for values that no kind of source can work with."""
        check_option("data.kind", self.kind, KINDS)
        check_option("data.on_error", self.on_error, ("stop", "skip"))
        check_option("data.modules", self.modules, ("small", "top", "all"))
        check_within(8, MOST_TOKENS, "data.", block_size=self.block_size)
        check_within(1, MOST_AT_ONCE, "data.", batch_size=self.batch_size)
        check_within(1, MOST_SHUFFLED, "data.", shuffle_window=self.shuffle_window)
        check_least(0, "data.", held_out_one_in=self.held_out_one_in, num_retries=self.num_retries)
        check_within(1, MOST_ROWS, "data.", questions=self.questions)
        check_within(1, MOST_TOKENS, "data.", question_tokens=self.question_tokens)
        check_share("data.followup_share", self.followup_share)
        if self.held_out_one_in == 1:
            raise UserError(
                "data.held_out_one_in must be 0 (hold none out) or at least 2; got 1, which would hold every row out"
            )
        if not self.text_separator or "\n" in self.text_separator:
            raise UserError(
                "data.text_separator must be auto, headings, paragraphs, lines, whole, or a string inside a line; got "
                f"{self.text_separator!r}"
            )


def data_of_checkpoint() -> DataConfig:
    """What the heads were trained on, as heads.json says (conf/data/checkpoint.yaml)."""
    return DataConfig(kind="checkpoint")
