"""The error that a user can mend, those of a failed and of a stopped run, the warning about a network, missing packages."""

from importlib.util import find_spec


class BadInput(ValueError):
    """Something given to `gkp` cannot be used.

    The message is one line that says what is wrong, where, and how to mend it; nothing on disk has been changed.
    The command line prints it as it is and exits with status 2.
    """


class RunFailed(RuntimeError):
    """Sound input, but something failed while running: a cell of a notebook, an experiment.

    The message is one line that says what failed and where to look. The command line prints it and exits with status 1.
    """


class OutOfTime(RunFailed):
    """Work was stopped at its deadline. What was finished is kept, and the same call goes on from there."""


class ModelWarning(UserWarning):
    """A network was evaluated, but its values may not mean what they seem to; the message says why, and how to mend it."""


def need_extra(extra: str, *modules: str) -> None:
    """Check that optional packages are installed before they are imported.

    Args:
        extra: The extra of this package that brings them, e.g. "attacks".
        modules: Names of top-level modules, e.g. "pyautoattack".

    Raises:
        BadInput: One of them is missing; the line names the extra.
    """
    if missing := [module for module in modules if find_spec(module) is None]:
        raise BadInput(f'{", ".join(missing)} not installed; get what is missing with: pip install "gkp[{extra}]"')


def reason_of(error: BaseException) -> str:
    """The reason of an exception, in one line."""
    if isinstance(error, SystemExit):
        return f"it ends the program (exit {error.code})"
    return (str(error) or type(error).__name__).splitlines()[0][:200]
