"""Settings of a server that a user chooses; conf/serve.yaml has them with their defaults."""

import ipaddress
import os
from dataclasses import dataclass, field

from euryale.errors import UserError
from euryale.system.paths import user_path

KEY_VARIABLE = "EURYALE_API_KEY"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass
class ServerConfig:
    """Where to listen, whom to answer and how much at once."""

    host: str = "127.0.0.1"
    port: int = 8000
    model: str | None = None
    max_rows: int = 8
    max_model_len: int = 2048
    max_waiting: int = 64
    prefix_tokens: int = 8192
    deadline: float = 600.0
    drain: float = 30.0
    api_key_file: str | None = None
    allowed_hosts: list[str] = field(default_factory=list)
    allowed_origins: list[str] = field(default_factory=list)
    warm_up: bool = True

    def check_server(self) -> None:
        """Raises UserError for numbers out of range, and for an address that others reach without a key."""
        for name, value, least, most in (
            ("port", self.port, 0, 65535),
            ("max_rows", self.max_rows, 1, 1024),
            ("max_model_len", self.max_model_len, 2, 2**31),
            ("max_waiting", self.max_waiting, 0, 100_000),
            ("prefix_tokens", self.prefix_tokens, 0, 2**31),
            ("deadline", self.deadline, 1, 86_400),
            ("drain", self.drain, 0, 3_600),
        ):
            if not least <= value <= most:
                raise UserError(f"{name} must be from {least} to {most}; got {value}.")
        keys = self.api_keys()
        if not self.is_loopback and not keys:
            raise UserError(
                f"host={self.host} can be reached from other machines, and there is no API key. Set {KEY_VARIABLE}, or "
                "api_key_file to a file with a key on each line; or use host=127.0.0.1."
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def api_keys(self) -> tuple[str, ...]:
        """All keys that are accepted; none: no key is asked for. Raises UserError for a file that cannot be read."""
        keys = [os.environ.get(KEY_VARIABLE, "").strip()]
        if self.api_key_file is not None:
            try:
                keys += [
                    line.strip()
                    for line in user_path(self.api_key_file, "api_key_file").read_text(encoding="utf-8").splitlines()
                ]
            except (OSError, UnicodeError) as error:
                raise UserError(
                    f"api_key_file={self.api_key_file} cannot be read ({type(error).__name__}). "
                    "Name a UTF-8 file with a key on each line."
                ) from error
            if not any(keys):
                raise UserError(f"api_key_file={self.api_key_file} holds no key. Write one on each line.")
        found = tuple(key for key in keys if key)
        if not all(key.isascii() and key.isprintable() and " " not in key for key in found):
            raise UserError("an API key must be printable ASCII without spaces, because it travels in a header.")
        return found

    def hosts(self) -> tuple[str, ...]:
        """Names that a Host header may have, without the port; none: any name."""
        if self.is_loopback:
            return (*LOOPBACK_NAMES, *self.allowed_hosts)
        return tuple(self.allowed_hosts)
