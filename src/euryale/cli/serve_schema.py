"""Settings of infer/serve.py and infer/serve_ray.py: an engine, and where and to whom it answers."""

import os
from dataclasses import dataclass

from euryale.decoding.config import EngineConfig
from euryale.errors import UserError, check_least
from euryale.server.config import ServerConfig


@dataclass
class ServeConfig(ServerConfig, EngineConfig):
    """infer/serve.py: an engine, and where and to whom it answers. Requests bring their own sampling."""

    row_budget: int | None = None

    def check(self) -> None:
        """Raises UserError for what cannot be, before a base is loaded."""
        self.check_server()
        check_least(1, row_budget=self.row_budget)
        super().check()


@dataclass
class ServeRayConfig(ServeConfig):
    """infer/serve_ray.py: several such engines on one machine, behind one address."""

    replicas: int = 2
    cores: int = 1

    def check(self) -> None:
        super().check()
        check_least(1, replicas=self.replicas, cores=self.cores)
        num_cores = len(os.sched_getaffinity(0))
        if self.replicas * self.cores > num_cores:
            raise UserError(
                f"replicas times cores must be at most the {num_cores} cores of this machine; got "
                f"{self.replicas} x {self.cores}. Start fewer replicas, or give each fewer cores."
            )
