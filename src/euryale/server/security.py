"""Who may ask: the Host allow-list, the Origin of browsers, and the API key."""

from secrets import compare_digest
from urllib.parse import urlsplit

from euryale.server.asgi import App, Receive, Scope, Send, header, refuse
from euryale.server.config import ServerConfig
from euryale.server.errors import ApiError, unauthorized

GUARDED_PREFIXES = ("/v1", "/tokenize", "/detokenize", "/metrics", "/openapi.json")  # the others are the page


class Security:
    """Refuses requests by their head alone."""

    def __init__(self, app: App, config: ServerConfig) -> None:
        self._app = app
        self._hosts = {name.lower() for name in config.hosts()}
        self._origins = {origin.lower().rstrip("/") for origin in config.allowed_origins}
        self._keys = [key.encode() for key in config.api_keys()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            self._check_host(scope)
            if scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD"):
                self._check_origin(scope)
            if scope["type"] == "http" and scope["path"].startswith(GUARDED_PREFIXES):
                self._check_key(scope)
        except ApiError as error:
            await refuse(error, scope, send)
            return
        await self._app(scope, receive, send)

    def is_key(self, key: str | None) -> bool:
        """Whether a key opens this server; any does where none is set."""
        given = (key or "").encode("utf-8", "replace")
        # All keys are compared, so that the time tells nothing about them.
        return not self._keys or any([compare_digest(given, known) for known in self._keys])

    def _check_host(self, scope: Scope) -> None:
        """Against DNS rebinding: a page of another site that has its own name point here."""
        host = (header(scope, b"host") or "").lower()
        if self._hosts and _without_port(host) not in self._hosts:
            names = ", ".join(sorted(self._hosts))
            raise ApiError(403, f"the Host header must be one of {names}. Add the name to allowed_hosts.")

    def _check_origin(self, scope: Scope) -> None:
        """Browsers say which page sends a request; other clients send no Origin."""
        origin = header(scope, b"origin")
        if origin is None or origin.lower() in self._origins:
            return
        try:
            netloc = urlsplit(origin.lower()).netloc
        except ValueError:
            netloc = ""
        if netloc == "" or netloc != (header(scope, b"host") or "").lower():
            raise ApiError(403, "the Origin header names another site. Add it to allowed_origins.")

    def _check_key(self, scope: Scope) -> None:
        kind, _, key = (header(scope, b"authorization") or "").partition(" ")
        if not self.is_key(key.strip() if kind.lower() == "bearer" else None):
            raise unauthorized()


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
