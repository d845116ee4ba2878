"""A server process survives overload and clients that leave; after kill -9 a new one on its port answers the same."""

from pathlib import Path

from server_soak import soak


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
    told = soak(seconds=1.0, times=10.0, num_leaving=40, settings=settings)
    assert told["answered"] > 0 and told["refused"] > 0
    before, after = told["memory_mib"]
    assert after < 1.1 * before
