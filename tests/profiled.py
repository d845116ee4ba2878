"""Peak memory of tensors during a piece of work, counted by torch itself, not by the process."""

from collections.abc import Callable

import torch


def peak_of_tensors(work: Callable[[], object]) -> int:
    """The most bytes that tensors took at a time beyond what there was, by torch's own record of its CPU allocator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest
