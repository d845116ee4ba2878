"""Metrics of several replicas of a server as one exposition: whichever replica is asked, the answer is about all.

Every replica tells a board what it counted, and gets what the others told. Series are kept apart by a label.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"
SILENT_SECONDS = 15.0  # after which a replica counts as gone


@dataclass
class Told:
    """What a replica told last."""

    exposition: str
    num_requests: int
    num_tokens: int
    is_drained: bool
    at: float = 0.0  # time.monotonic() of the board


class Board:
    """What all replicas told, and whether they shall drain. Lives in a process of its own."""

    def __init__(self) -> None:
        self._told: dict[str, Told] = {}
        self._is_draining = False

    def tell(self, replica: str, told: Told) -> tuple[dict[str, str], bool]:
        """Takes a replica's state. Returns the expositions of those that are alive, and whether to drain."""
        told.at = time.monotonic()
        self._told[replica] = told
        return {name: told.exposition for name, told in self._alive().items()}, self._is_draining

    def begin_drain(self) -> None:
        """Replicas are told with their next call."""
        self._is_draining = True

    def is_drained(self) -> bool:
        """Whether no replica answers anything any more."""
        return all(told.is_drained for told in self._alive().values())

    def totals(self) -> tuple[int, int]:
        """Requests and tokens of all replicas that there ever were."""
        everyone = self._told.values()
        return sum(told.num_requests for told in everyone), sum(told.num_tokens for told in everyone)

    def _alive(self) -> dict[str, Told]:
        now = time.monotonic()
        return {name: told for name, told in self._told.items() if now - told.at < SILENT_SECONDS}


class _Merged(Collector):
    """Families of the same name made one, each series with its replica's label."""

    def __init__(self, expositions: Mapping[str, str]) -> None:
        self._expositions = expositions

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in sorted(self._expositions.items()):
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, LABEL: replica}, sample.value)
        return families.values()


def merge(expositions: Mapping[str, str]) -> bytes:
    """One exposition of those of several replicas, by name."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(expositions))
    return generate_latest(registry)
