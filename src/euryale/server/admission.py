"""Places for sequences: those that are decoded and those that may wait. Runs in the event loop.

A request takes its places before its prompt is tokenised, so that a flood of long prompts costs nothing.
"""

from euryale.server.errors import overloaded


class Places:
    """The places that one request holds; `release` may be called more than once."""

    def __init__(self, admission: "Admission", num: int) -> None:
        self._admission = admission
        self._num = num

    def release(self) -> None:
        self._admission.num_taken -= self._num
        self._num = 0


class Admission:
    """Counts the places of all requests."""

    def __init__(self, num_places: int) -> None:
        self.num_places = num_places
        self.num_taken = 0

    def enter(self, num_sequences: int) -> Places:
        """Raises ApiError 503 with Retry-After where so many places are not free."""
        if self.num_taken + num_sequences > self.num_places:
            raise overloaded(self.num_places)
        self.num_taken += num_sequences
        return Places(self, num_sequences)
