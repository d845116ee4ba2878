"""The error that a user can mend: one clear message.

Scripts print the message of a `UserError` and exit with status 2. Any other exception is a bug of ours and
keeps its traceback. The checks below are of the kinds that many settings share.
"""

from collections.abc import Collection

# Bounds of counts that cost memory or hours: what is above them is a slip of the hand.
MOST_ROWS = 10**8  # prompts, rows, steps
MOST_TOKENS = 2**24  # of one text; no context is longer
MOST_AT_ONCE = 2**16  # rows of a batch, clients
MOST_REPEATS = 10**4  # rounds of a measurement
MOST_THREADS = 1024


class UserError(ValueError):
    """A mistake a user can mend.

    The message has three parts: what was asked, what was found, what to do.
    """


def check_least(least: int, prefix: str = "", /, **numbers: float | None) -> None:
    """Raises UserError for the first number below `least`, named with the prefix; None is not a number, a text none."""
    for name, number in numbers.items():
        if number is not None and not isinstance(number, int | float):
            raise UserError(f"{prefix}{name} must be a number; got {number!r:.80}.")
        if number is not None and not number >= least:  # NaN is below everything
            raise UserError(f"{prefix}{name} must be at least {least}; got {number}.")


def check_within(least: int, most: int, prefix: str = "", /, **numbers: float | None) -> None:
    """Raises UserError for the first number below `least` or above `most`, as check_least does."""
    check_least(least, prefix, **numbers)
    for name, number in numbers.items():
        if number is not None and number > most:
            raise UserError(f"{prefix}{name} must be at most {most}; got {number}.")


def check_threads(threads: int) -> None:
    """Raises UserError below 0, and for more than any machine has."""
    if not 0 <= threads <= MOST_THREADS:
        raise UserError(f"threads must be from 0 to {MOST_THREADS}; got {threads}. 0 takes what is fastest here.")


def check_share(name: str, share: float) -> None:
    """Raises UserError for what is not from 0 to 1."""
    if not 0 <= share <= 1:
        raise UserError(f"{name} must be from 0 to 1; got {share}.")


def check_option(name: str, value: object, options: Collection[str]) -> None:
    """Raises UserError for a value that is none of the options."""
    if value not in options:
        raise UserError(f"{name} must be one of {', '.join(options)}; got {value}.")
