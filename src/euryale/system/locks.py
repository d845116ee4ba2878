"""One process at a time in a folder; a process that dies, however it dies, leaves it free."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def alone(file: Path, when_taken: Callable[[], None]) -> Iterator[None]:
    """Holds `file` as a lock, in a folder that is there. Where another process holds it, calls `when_taken`, which may
    raise, and waits."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        when_taken()
        lock.acquire()
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: a waiting process opens it anew at every try
        lock.release()
