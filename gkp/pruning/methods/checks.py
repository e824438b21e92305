"""The check of numbers that methods are given."""

from __future__ import annotations

import math

from gkp.errors import BadInput


def check_number(
    who: str, name: str, value: float, least: float = 0, *, above: bool = False, whole: bool = False, hint: str = ""
) -> None:
    """Refuse a hyper-parameter that is out of range, infinite or NaN.

    Args:
        who: Name of the method.
        name: Name of the hyper-parameter.
        value: What it was given.
        least: The smallest value allowed.
        above: Whether `least` itself is too small.
        whole: Whether only whole numbers are allowed.
        hint: What to give, for the message.

    Raises:
        BadInput: It does not fit.
    """
    fits = isinstance(value, int) or not whole
    if not fits or not (least < value if above else least <= value) or not value < math.inf:
        wanted = f"above {least}" if above else f"a whole number of {least} or more" if whole else f"{least} or more"
        raise BadInput(f"{name} of {who} must be {wanted}, not {value}{hint and f'; {hint}'}")
