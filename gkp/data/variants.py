"""Changed test sets by name, so that an experiment or an option can ask for one.

| name | the test set |
|---|---|
| `high-frequency-0.3`, `high-frequency-corner-0.3-zero-mean` | `gkp.data.shifts.high_frequency`, by "half-side" unless named |
| `low-frequency-0.5` | `gkp.data.shifts.low_frequency` |
| `gaussian-noise-0.05`, `gaussian-noise-0.05-seed-1` | `gkp.data.shifts.gaussian_noise` |
| `shift-2-0`, `shift--2-0` | `gkp.data.shifts.shift`: pixels to the right, then down |
| `rotate-10`, `rotate--10` | `gkp.data.shifts.rotate`: degrees, counter-clockwise |

Each test set has one name: numbers are written as Python's `g` format does. Reading a name loads neither torch nor data.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gkp.errors import BadInput

if TYPE_CHECKING:
    from gkp.data.dataset import Dataset

_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_CUT = rf"(?:(?P<convention>corner|square|coefficients|energy|pixels)-)?(?P<theta>{_NUMBER})"
_KINDS = {  # function of `gkp.data.shifts` -> what its name looks like
    "high_frequency": rf"high-frequency-{_CUT}(?P<keep_mean>-zero-mean)?",
    "low_frequency": rf"low-frequency-{_CUT}",
    "gaussian_noise": rf"gaussian-noise-(?P<sigma>{_NUMBER})(?:-seed-(?P<seed>[1-9]\d*))?",
    "shift": r"shift-(?P<dx>-?\d+)-(?P<dy>-?\d+)",
    "rotate": rf"rotate-(?P<degrees>{_NUMBER})",
}
EXAMPLES = ("high-frequency-0.3", "low-frequency-0.5", "gaussian-noise-0.05", "shift-2-0", "rotate-10")
_WHOLE = ("dx", "dy", "seed")


def parse_variant(name: str) -> tuple[str, dict[str, Any]]:
    """The function of `gkp.data.shifts` and its arguments behind a name. Raises BadInput for an unknown name."""
    for function, pattern in _KINDS.items():
        if match := re.fullmatch(pattern, name):
            return function, {key: _value(key, text, name) for key, text in match.groupdict().items() if text is not None}
    raise BadInput(f"unknown changed test set {name!r}; names look like {', '.join(EXAMPLES)}")


def variant(data: Dataset, name: str) -> Dataset:
    """Apply the change of this name to a data set; "" leaves it as it is.

    Raises:
        BadInput: Unknown name, or a value out of range.
    """
    if not name:
        return data
    from gkp.data import shifts  # late: it brings torch, which reading a name does without

    function, arguments = parse_variant(name)
    return getattr(shifts, function)(data, **arguments)


def _value(key: str, text: str, name: str) -> Any:
    if key == "convention":
        return text
    if key == "keep_mean":
        return False
    number = int(text) if key in _WHOLE else float(text)
    written = "0" if number == 0 else f"{number}" if key in _WHOLE else f"{number:g}"
    if written != text:
        raise BadInput(f"write {written} for {text} in {name!r}: a changed test set has one name")
    return number
