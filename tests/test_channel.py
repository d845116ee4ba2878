"""Words of the first process reach the others in order, and a process that lost the first one says so."""

import os
from pathlib import Path

import pytest
from forked import in_processes

from euryale.system import processes
from euryale.system.channel import Channel


def test_words_of_the_first_process_are_heard_in_order(tmp_path: Path) -> None:
    words = [["a", 1], None, {"b": (2, 3)}]

    def work() -> list[object]:
        processes.join("cpu")
        channel = Channel()
        if not processes.is_first():
            return [channel.hear() for _ in words]
        for word in words:
            channel.say(word)
        return words

    assert in_processes(2, work, tmp_path) == [words, words]


def test_a_process_that_lost_the_first_one_has_a_line_for_its_user(tmp_path: Path) -> None:
    def work() -> str | None:
        processes.join("cpu")
        channel = Channel()
        if processes.is_first():
            processes.leave()
            return None
        with pytest.raises(RuntimeError) as caught:
            channel.hear()
        return processes.refusal(caught.value) or f"{os.getpid()} {caught.value}"

    assert in_processes(2, work, tmp_path)[1] == (
        "process 1 of 2 lost another, which has ended. Look for what that one said last."
    )
