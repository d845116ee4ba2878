"""A server process survives overload and clients that leave; after kill -9 a new one on its port answers the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from served import served_by_a_fork
from server_soak import MODEL, Served, soak


@contextmanager
def fork(server: Served) -> Iterator[None]:
    """Serves on the port of the server that was killed, in a process that need not import everything again."""
    with served_by_a_fork(*server.settings, f"model={MODEL}", f"port={server.port}"):
        server.wait_until_ready()
        yield


def test_overload_disconnects_and_a_kill_leave_the_next_greedy_text_as_it_was(tiny_llama_folder: Path) -> None:
    base = [f"base.path={tiny_llama_folder}", "base.dtype=float32", "base.device=cpu"]
    settings = [
        "checkpoint=null",
        *base,
        "drafter=lookup",
        "threads=1",
        "max_model_len=256",
        "max_rows=2",
        "max_waiting=2",
    ]
    told = soak(seconds=1.0, times=10.0, num_leaving=40, settings=settings, again=fork)
    assert told["answered"] > 0 and told["refused"] > 0
    before, after = told["memory_mib"]
    assert after < 1.1 * before
