"""Settings of infer/serve.py: an engine, and where and to whom it answers."""

from dataclasses import dataclass, field

from euryale.base.config import BaseConfig, base_of_checkpoint
from euryale.decoding.accept import AcceptConfig
from euryale.decoding.config import DecodeConfig
from euryale.decoding.drafters.build import DrafterConfig
from euryale.decoding.tree.choose import TreeConfig
from euryale.server.config import ServerConfig


@dataclass
class ServeConfig(ServerConfig):
    """infer/serve.py: an engine, and where and to whom it answers. Requests bring their own sampling."""

    checkpoint: str | None = "last"
    base: BaseConfig = field(default_factory=base_of_checkpoint)
    drafter: DrafterConfig = field(default_factory=DrafterConfig)
    tree: TreeConfig = field(default_factory=TreeConfig)
    accept: AcceptConfig = field(default_factory=AcceptConfig)
    temperature: float = 0.0  # that trees are chosen for
    threads: int = 0
    deterministic: bool = False

    def check(self) -> None:
        """Raises UserError for what cannot be, before a base is loaded."""
        self.check_server()
        self.decode().check()

    def decode(self) -> DecodeConfig:
        """The part that makes the engine."""
        return DecodeConfig(
            self.checkpoint,
            self.base,
            self.drafter,
            self.tree,
            self.accept,
            temperature=self.temperature,
            threads=self.threads,
            deterministic=self.deterministic,
        )
