"""Ctrl-C ends a script with one line and status 130, from the import of this module on.

Standard streams that are closed are opened to nowhere here too, before another file can take their numbers.

Every script imports it before anything else of the project: torch and transformers take seconds to import, and a
Ctrl-C in between would end in a traceback of their files. The part that has something to save catches Ctrl-C itself
(euryale/training/signals.py); what nothing catches arrives here.
"""

import logging
import sys
from types import TracebackType
from typing import NoReturn

from euryale.system import processes, streams

STATUS = 130  # what a shell reports for SIGINT: 128 + 2


def end() -> NoReturn:
    """Ends the process as interrupted; under torchrun the first process says so for all."""
    if processes.is_first():
        with streams.guarded():
            print("interrupted; what was saved before is kept", file=sys.stderr, flush=True)
    logging.disable()  # torch, where its import was cut short, logs at the end of the process
    sys.exit(STATUS)


def _hook(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    """As sys.__excepthook__ for all but Ctrl-C."""
    if issubclass(kind, KeyboardInterrupt):
        end()
    sys.__excepthook__(kind, error, at)


sys.excepthook = _hook
streams.open_missing()
