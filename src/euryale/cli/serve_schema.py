"""Settings of infer/serve.py: an engine, and where and to whom it answers."""

from dataclasses import dataclass

from euryale.decoding.config import EngineConfig
from euryale.server.config import ServerConfig


@dataclass
class ServeConfig(ServerConfig, EngineConfig):
    """infer/serve.py: an engine, and where and to whom it answers. Requests bring their own sampling."""

    def check(self) -> None:
        """Raises UserError for what cannot be, before a base is loaded."""
        self.check_server()
        super().check()
