"""Names of the engines that evaluate and time networks; this module does not import torch, so that planning stays fast."""

from __future__ import annotations

from gkp.errors import BadInput

ENGINES = ("torch", "fast")  # torch itself, or `gkp.compile`


def check_engine(engine: str, of: str = "") -> None:
    """Raise BadInput for an unknown engine.

    Args:
        engine: The name.
        of: What it would run, in the words of the error: " of an evaluation".
    """
    if engine not in ENGINES:
        raise BadInput(f"unknown engine {engine!r}{of}; known: {', '.join(ENGINES)}")
