"""Settings of infer/load.py."""

from dataclasses import dataclass, field

from euryale.errors import MOST_AT_ONCE, MOST_ROWS, MOST_TOKENS, UserError, check_within
from euryale.system.files import check_writable
from euryale.system.paths import user_path


@dataclass
class LoadConfig:
    """infer/load.py"""

    url: str = "http://127.0.0.1:8000/v1"
    other: str | None = None
    model: str | None = None
    other_model: str | None = None
    prompts: str = "data/prompts.txt"
    limit: int = 32
    requests: int = 32
    clients: list[int] = field(default_factory=lambda: [1, 4, 8])
    rates: list[float] = field(default_factory=list)
    warm_up: int = 2
    max_tokens: int = 128
    ignore_eos: bool = False
    temperature: float = 0.0
    seed: int = 0
    timeout: float = 600.0
    api_key_variable: str = "EURYALE_API_KEY"
    output: str | None = None

    def check(self) -> None:
        """Raises UserError for numbers out of range, and for a folder that cannot be written to."""
        check_within(1, MOST_ROWS, limit=self.limit, requests=self.requests)
        check_within(1, MOST_TOKENS, max_tokens=self.max_tokens)
        if not self.rates and (not self.clients or min(self.clients) < 1):
            raise UserError(f"clients must be numbers of at least 1; got {self.clients}.")
        check_within(1, MOST_AT_ONCE, clients=max(self.clients, default=1))
        if self.rates and min(self.rates) <= 0:
            raise UserError(f"rates must be above 0; got {self.rates}.")
        if self.warm_up < 0 or self.timeout <= 0 or self.temperature < 0:
            raise UserError("warm_up and temperature must be at least 0, and timeout above 0.")
        if self.output is not None:
            check_writable(user_path(self.output, "output"), f"output={self.output}")

    def loads(self) -> list[tuple[int | None, float | None]]:
        """The levels: so many clients, or so many requests a second."""
        return [(None, rate) for rate in self.rates] if self.rates else [(num, None) for num in self.clients]
