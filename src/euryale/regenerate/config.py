"""Settings of regeneration: how the base writes its own training text."""

from dataclasses import dataclass

from euryale.decoding.sampling import LEAST_TEMPERATURE, MOST_TEMPERATURE
from euryale.errors import MOST_AT_ONCE, MOST_ROWS, MOST_TOKENS, UserError, check_least, check_share, check_within


@dataclass
class RegenerateConfig:
    """How the base writes its own training text."""

    num_prompts: int = 2048
    prompt_tokens: int = 48
    new_tokens: int = 128
    greedy_share: float = 0.3
    temperature: float = 0.8
    batch_size: int = 512
    shard_rows: int = 256
    max_turns: int = 4
    url: str | None = None
    model: str | None = None
    seed: int = 0
    output: str = "data/regenerated"

    def check(self) -> None:
        """Raises UserError for what no base can do."""
        check_within(1, MOST_ROWS, "regenerate.", num_prompts=self.num_prompts)
        check_within(1, MOST_TOKENS, "regenerate.", prompt_tokens=self.prompt_tokens, new_tokens=self.new_tokens)
        check_within(1, MOST_AT_ONCE, "regenerate.", batch_size=self.batch_size)
        check_least(1, "regenerate.", shard_rows=self.shard_rows, max_turns=self.max_turns)
        check_share("regenerate.greedy_share", self.greedy_share)
        if self.greedy_share < 1.0 and not LEAST_TEMPERATURE <= self.temperature <= MOST_TEMPERATURE:
            raise UserError(
                f"regenerate.temperature must be above 0 to sample, and at most {MOST_TEMPERATURE:g}; got "
                f"{self.temperature}."
            )
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise UserError(f"regenerate.url must be an address as http://HOST:8000/v1; got {self.url}.")
