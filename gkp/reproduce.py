"""Where `gkp.artifact.notebooks` stood before: scripts that import `run_notebook` from here go on working."""

from gkp.artifact.notebooks import run_notebook

__all__ = ["run_notebook"]
