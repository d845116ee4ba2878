"""Several connected processes without the half minute that starting them takes: forks of the one that has torch."""

import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState

from euryale.system import processes


def in_processes(count: int, work: Callable[[], Any], place: Path) -> list[Any]:
    """What `work` returned in each of `count` processes that know each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(rank, count, port, work, place / f"process-{rank}.pickle") for rank in range(count)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert statuses == [0] * count, statuses
    return [pickle.loads((place / f"process-{rank}.pickle").read_bytes()) for rank in range(count)]


def _fork(rank: int, count: int, port: int, work: Callable[[], Any], answer: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()  # the parent's says that it is alone
        processes.HOLD_BACK_S = 0.0
        answer.write_bytes(pickle.dumps(work()))
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)
