"""A former name of `gkp.artifact.notebooks`, for scripts that import `run_notebook` from it; nothing else uses it."""

from gkp.artifact.notebooks import run_notebook

__all__ = ["run_notebook"]
