"""The address of a server, tried before anything slow is done for it."""

import socket

from euryale.errors import UserError
from euryale.server.config import ServerConfig


def find_port(config: ServerConfig) -> int:
    """The port that can be listened at now; for port 0 a free one. Raises UserError where there is none."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        with socket.create_server((config.host, config.port), family=family) as listener:
            return int(listener.getsockname()[1])
    except (OSError, UnicodeError) as error:  # UnicodeError: no host can have this name
        raise UserError(
            f"host={config.host} port={config.port} cannot be listened at ({error}). Choose another port, or "
            "host=127.0.0.1 for this machine alone."
        ) from error
