"""A drafter that chooses the number of nodes of the next step.

Calibration says what a tree of n nodes gains on average and what a step over it costs here. Texts differ: the same
tree gains twice as much in one as in another. So what was lately accepted is compared with what calibration promised,
and the next step takes the n with the most tokens a millisecond under that ratio: larger trees while guesses are good,
smaller ones while they are not, and none where speculation does not pay. Nothing is timed while decoding, so the same
prompt always takes the same steps.

A step over B rows of n nodes is priced as one over B x n nodes: both are as many rows of the same products.
"""

from collections.abc import Mapping, Sequence

from euryale.decoding.drafters.interface import Draft, Drafter, DraftInput

_WEIGHT = 0.15  # of the latest step in the ratio: it remembers some seven
_FORGET = 0.01  # of the way back to what calibration said, with every step that tries nothing
_MOST = 4.0  # a ratio beyond this is luck


class AdaptiveDrafter(Drafter):
    """Several drafters, one for each number of nodes; each step asks one of them."""

    def __init__(
        self,
        drafters: Mapping[int, Drafter],
        tau: Mapping[int, float],
        step_ms: Mapping[int, float],
    ) -> None:
        """All by number of nodes, among them 1: what drafts, what calibration promises, what a step costs."""
        assert 1 in drafters and set(drafters) <= set(tau) and set(drafters) <= set(step_ms)
        self._drafters, self._tau, self._step_ms = dict(drafters), dict(tau), dict(step_ms)
        self.num_nodes = max(drafter.num_nodes for drafter in drafters.values())
        self.max_depth = max(drafter.max_depth for drafter in drafters.values())
        self.layers = max((drafter.layers for drafter in drafters.values()), key=len)
        self.searches_text = any(drafter.searches_text for drafter in drafters.values())
        self.is_on_device = all(drafter.is_on_device for drafter in drafters.values())
        assert not any(drafter.reads_text for drafter in drafters.values()), "one that is not asked would not follow"
        self.ratio = 1.0  # drafted tokens that were accepted lately, to those that calibration promised
        self._asked = 1
        self._lengths: list[int | None] = []  # of each row's text at the last step; None: it is new

    def begin(self, num_rows: int, num_slots: int) -> "AdaptiveDrafter":
        begun = {n: drafter.begin(num_rows, num_slots) for n, drafter in self._drafters.items()}
        return AdaptiveDrafter(begun, self._tau, self._step_ms)

    def add(self, row: int) -> None:
        for drafter in self._drafters.values():
            drafter.add(row)
        self._lengths[row : row + 1] = [None]

    def swap_remove(self, row: int) -> None:
        for drafter in self._drafters.values():
            drafter.swap_remove(row)
        self._lengths[row] = self._lengths[-1]
        self._lengths.pop()

    def have_read(self, lengths: Sequence[int]) -> None:
        self._lengths = [length + 1 for length in lengths]  # and the root; what was gained is learned already

    def propose(self, draft_input: DraftInput) -> Draft:
        before = zip(draft_input.texts, self._lengths, strict=True)
        grown = [len(text) - length for text, length in before if length is not None and len(text) > length]
        self._lengths = [len(text) for text in draft_input.texts]
        self.learn(self._asked, grown)
        self._asked = self.choose(len(draft_input.texts))
        return self._drafters[self._asked].propose(draft_input)

    def sizes(self) -> Mapping[int, Drafter]:
        return self._drafters

    def learn(self, num_nodes: int, gains: Sequence[int]) -> None:
        """Compares what a step has gained with what was promised."""
        if not gains:
            return
        if num_nodes == 1:
            self.ratio += _FORGET * (1.0 - self.ratio)
        else:
            accepted = sum(gains) / len(gains) - 1.0
            now = min(accepted / (self._tau[num_nodes] - 1.0), _MOST)
            self.ratio += _WEIGHT * (now - self.ratio)

    def choose(self, num_rows: int) -> int:
        """The number of nodes with the most tokens a millisecond, as things look now."""
        return max(self._drafters, key=lambda n: (1.0 + self.ratio * (self._tau[n] - 1.0)) / self.price(n * num_rows))

    def price(self, num_nodes: int) -> float:
        """Milliseconds of a step over so many nodes, between and beyond those that were timed."""
        timed = sorted(self._step_ms)
        if len(timed) == 1:
            return self._step_ms[timed[0]]
        above = next((i for i, n in enumerate(timed) if n >= num_nodes), len(timed) - 1)
        low, high = timed[max(above, 1) - 1], timed[max(above, 1)]
        slope = max(self._step_ms[high] - self._step_ms[low], 0.0) / (high - low)
        return self._step_ms[low] + slope * (num_nodes - low)
