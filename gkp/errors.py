"""The one error a user can mend, the one a run ends with, and the warning about a network."""


class BadInput(ValueError):
    """Something given to `gkp` cannot be used.

    The message is one line that says what is wrong, where, and how to mend it; nothing on disk has been changed.
    The command line prints it as it is and exits with status 2.
    """


class RunFailed(RuntimeError):
    """Sound input, but something failed while running: a notebook's cell, a cell of the grid.

    The message is one line that says what failed and where to look. The command line prints it and exits with status 1.
    """


class ModelWarning(UserWarning):
    """A network was evaluated, but its figures may not mean what they seem to; the message says why, and how to mend it."""
