"""Settings of infer/doctor.py: decoding as it is served, and the prompts to look at."""

from dataclasses import dataclass, field

from euryale.data.config import DataConfig, data_of_checkpoint
from euryale.decoding.config import AnswerConfig
from euryale.errors import MOST_AT_ONCE, UserError, check_least, check_within
from euryale.evaluation.config import FEWEST_TOKENS


@dataclass
class DoctorConfig(AnswerConfig):
    """infer/doctor.py"""

    data: DataConfig = field(default_factory=data_of_checkpoint)
    prompts: str | None = None
    limit: int = 16
    batch_size: int = 8
    output: str | None = None
    max_new_tokens: int = 64

    def check(self) -> None:
        """Raises UserError for what cannot be, before a base is loaded."""
        super().check()
        check_least(1, limit=self.limit)
        check_within(1, MOST_AT_ONCE, batch_size=self.batch_size)
        if self.limit * self.max_new_tokens < FEWEST_TOKENS:
            raise UserError(
                f"limit x max_new_tokens must be at least {FEWEST_TOKENS} tokens to judge by; got {self.limit} x "
                f"{self.max_new_tokens}. Raise one of them."
            )
        if self.prompts is None:
            raise UserError("prompts must be a file of prompts on which tau is low; got null. Give prompts=FILE.")
        if self.checkpoint is None or not self.drafter.needs_heads:
            raise UserError(
                f"the doctor examines heads; got checkpoint={self.checkpoint or 'null'} drafter={self.drafter.name}. "
                "Give a checkpoint, and drafter=heads, eagle or heads+lookup."
            )
