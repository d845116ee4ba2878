"""The page at /: built files in the folder `page`, read once, with headers that let it load nothing from elsewhere.

Each file is a route of its own, so no path can lead out of the folder, and a wrong method on another route stays 405.
"""

import mimetypes
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; connect-src 'self'; object-src 'none'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


def page_routes(folder: Path = FOLDER) -> list[Route]:
    """A route for each file below the folder; `index.html` is /. None where the folder is missing."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [_route(path, path.relative_to(folder).as_posix()) for path in files]


def _route(path: Path, name: str) -> Route:
    body = path.read_bytes()
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    # The names of the files in assets/ change with their content; browsers may keep them for ever.
    caching = "public, max-age=31536000, immutable" if name.startswith("assets/") else "no-cache"
    headers = _HEADERS | {"cache-control": caching}

    async def answer(request: Request) -> Response:
        return Response(body, media_type=media_type, headers=headers)

    endpoint: Callable[[Request], Awaitable[Response]] = answer
    url = "/" if name == "index.html" else f"/{name}"
    return Route(url, endpoint, methods=["GET", "HEAD"], include_in_schema=False)
