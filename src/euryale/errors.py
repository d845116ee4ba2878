"""The error that a user can mend: one clear message.

Scripts print the message of a `UserError` and exit with status 2. Any other exception is a bug of ours and
keeps its traceback.
"""


class UserError(ValueError):
    """A mistake a user can mend.

    The message has three parts: what was asked, what was found, what to do.
    """
