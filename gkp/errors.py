"""The one error a user can mend."""


class BadInput(ValueError):
    """Something given to `gkp` cannot be used.

    The message is one line that says what is wrong, where, and how to mend it; nothing on disk has been changed.
    The command line prints it as it is and exits with status 2.
    """
