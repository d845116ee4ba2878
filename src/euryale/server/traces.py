"""What the log says of an exception: its type and where it was raised.

Messages are left out, because many repeat the value that was refused, and that may be a user's text.
"""

import traceback


def trace_of(error: BaseException) -> str:
    """The frames of an exception and of those that it came from, oldest first."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    parts = [f"{type(item).__name__}\n{''.join(traceback.format_tb(item.__traceback__))}" for item in reversed(chain)]
    return "\n".join(parts).rstrip()
