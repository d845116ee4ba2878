"""Reports of steps on their way to the host.

Letters: B batch, X numbers of a report, T answer tokens of one step, L logprobs and ids of a token.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Sent(NamedTuple):
    """What a step tells the host, in memory of the host."""

    report_BX: Tensor
    logprobs_BTL: Tensor | None
    num_nodes: int  # that the step verified
    event: torch.cuda.Event | None  # after it both tensors have arrived; None: they have


class Mail:
    """Reports on their way to the host, in the order in which they were sent: at most two."""

    def __init__(self, device: torch.device) -> None:
        self._is_card = device.type == "cuda"
        self._sent: list[Sent] = []

    @property
    def is_waiting(self) -> bool:
        return bool(self._sent)

    def send(self, report_BX: Tensor, logprobs_BTL: Tensor | None, num_nodes: int) -> None:
        """Copies them as they are now, without waiting."""
        on_host = self._copy(report_BX), None if logprobs_BTL is None else self._copy(logprobs_BTL)
        event = None
        if self._is_card:
            event = torch.cuda.Event()
            event.record()
        self._sent.append(Sent(*on_host, num_nodes, event))

    def receive(self) -> Sent:
        """Waits for the first report that was sent and not received."""
        sent = self._sent.pop(0)
        if sent.event is not None:
            sent.event.synchronize()
        return sent

    def _copy(self, numbers: Tensor) -> Tensor:
        if not self._is_card:
            return numbers.clone()
        # Pinned memory comes from a cache of torch's own, which knows when a copy is done with it.
        on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        return on_host.copy_(numbers, non_blocking=True)
