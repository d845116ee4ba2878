"""Processes that work on one command: their number, this one's place, and what the first one decides for all.

torchrun starts N processes of the same command line and tells each its number in the environment. accelerate connects
them: gloo on CPUs, NCCL on GPUs. What a user reads, and what is written to disk, is the first one's business.
"""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from euryale.errors import UserError

Result = TypeVar("Result")
# For others to come to the same point. The longest waits: while the first process makes a tokenizer, and for the end of
# the slowest share of written text. The launcher notices a process that died; this ends one that hangs.
PATIENCE = timedelta(hours=2)
HOLD_BACK_S = 5.0  # longer than a process with torch takes to end on a busy machine


def count() -> int:
    """The number of processes that the launcher started; 1 without a launcher."""
    return _told("WORLD_SIZE", 1)


def count_here() -> int:
    """How many of them run on this machine."""
    return _told("LOCAL_WORLD_SIZE", count()) if count() > 1 else 1


def number() -> int:
    """Which of them this is, from 0."""
    return _told("RANK", 0) if count() > 1 else 0


def check_environment() -> None:
    """Raises UserError for numbers of the environment that no launcher has set so: left over, or in part."""
    here, rank, _ = count_here(), number(), _told("LOCAL_RANK", 0)
    missing = [name for name in ("RANK", "MASTER_ADDR") if count() > 1 and not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE must come with {' and '.join(missing)}, as torchrun sets them; got WORLD_SIZE={count()} "
            f"alone. Start with torchrun --nproc_per_node={count()}, or unset WORLD_SIZE."
        )
    for name, value, bound in (("RANK", rank, count()), ("LOCAL_WORLD_SIZE", here - 1, count())):
        if value >= bound:
            raise UserError(
                f"{name} must fit WORLD_SIZE={count()}; got {os.environ[name]}. Start with torchrun, or unset both."
            )


def _told(name: str, default: int) -> int:
    """A number of the environment. Raises UserError for what cannot be one."""
    text = os.environ.get(name) or str(default)
    least = 1 if name.endswith("SIZE") else 0
    if not text.isdecimal() or int(text) < least:
        raise UserError(
            f"{name} in the environment must be a whole number of at least {least}, as torchrun sets it; got {text}. "
            "Unset it."
        )
    return int(text)


def is_first() -> bool:
    return number() == 0


def is_supervised() -> bool:
    """Whether torchrun watches over this process: it passes signals on, and kills what does not end in 30 seconds."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def join(device: str) -> None:
    """Connects the processes; on GPUs each takes the one of its local number. Nothing happens to a single process.

    Raises UserError for a device that they cannot share, or more processes on a machine than it has GPUs.
    """
    if count() == 1:
        return
    import torch  # here, and accelerate: composing a config must not wait for them
    from accelerate import PartialState

    if ":" in device:
        raise UserError(
            f"base.device={device} names one GPU, and {count()} processes cannot share it. Use base.device=cuda, which "
            "gives each process its own."
        )
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    local = count_here()
    if not on_cpu and local > torch.cuda.device_count():
        raise UserError(
            f"{local} processes were started on a machine with {torch.cuda.device_count()} GPUs. Give torchrun "
            f"--nproc_per_node={torch.cuda.device_count()}, or base.device=cpu."
        )
    PartialState(cpu=on_cpu, timeout=PATIENCE)


def first(work: Callable[[], Result]) -> Result:
    """What `work` returns in the first process, in all of them; the others only wait.

    A UserError of the first is raised there alone. The others end quietly with its status.
    """
    if count() == 1:
        return work()
    refusal: UserError | None = None
    answer: list[Any] = [None, False]
    if is_first():
        try:
            answer = [work(), False]
        except UserError as error:
            refusal, answer = error, [None, True]
    from accelerate.utils import broadcast_object_list  # as in join

    broadcast_object_list(answer)
    if refusal is not None:
        raise refusal
    if answer[1]:
        hold_back()
        raise SystemExit(2)
    return answer[0]


def wait() -> None:
    """Returns when all processes have come here."""
    if count() > 1:
        from accelerate import PartialState  # as in join

        PartialState().wait_for_everyone()


def refusal(error: RuntimeError) -> str | None:
    """What to tell a user when this process waited in vain for another, or lost it; None for any other error."""
    reason = str(error)
    if count() > 1 and any(words in reason for words in ("Connection closed by peer", "Connection reset by peer")):
        return f"process {number()} of {count()} lost another, which has ended. Look for what that one said last."
    if count() == 1 or not any(words in reason for words in ("Timed out waiting", "Watchdog caught collective")):
        return None
    return (
        f"process {number()} of {count()} waited for another until its time was over ({PATIENCE}). Look for what the "
        "other processes said last; python train/run.py resume=last goes on from the last save."
    )


def leave() -> None:
    """Ends the group of processes: from here on this process works, or ends, by itself."""
    if count() > 1:
        import torch.distributed  # as in join

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def hold_back() -> None:
    """Gives the first process time to speak: the launcher stops all processes as soon as one of them has ended."""
    if not is_first():
        time.sleep(HOLD_BACK_S)
