"""Executes a notebook in a kernel of the interpreter that runs this, whatever other kernels JUPYTER_PATH has."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from weakref import WeakSet

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from gkp.artifact.experiments.store import default_store
from gkp.files import given_folders

_running: WeakSet[OwnKernel] = WeakSet()


class OwnKernel(AsyncKernelManager):
    """The kernel of this interpreter."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        _running.add(self)

    @property
    def kernel_spec(self) -> KernelSpec:
        """The specification that ipykernel makes for this interpreter; no folder of kernels is asked."""
        return KernelSpecManager(kernel_dirs=[]).get_kernel_spec("python3")

    async def _async_interrupt_kernel(self) -> None:
        """Do nothing: jupyter_client interrupts a kernel before every shutdown, and an idle one reports that as an error."""


def execute(book: NotebookNode, folder: Path) -> None:
    """Run the cells of a notebook in place, with `folder` as the kernel's current folder."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),  # the gkp that runs this
        "GKP_DATA": os.pathsep.join(map(str, given_folders())),  # absolute: the kernel has another current folder
        "GKP_CELLS": str(default_store().root),
        **_places_without_home(folder),
    }
    # below "error", the kernel warns that it listens to this machine
    client = NotebookClient(book, kernel_manager_class=OwnKernel, timeout=None, extra_arguments=["--log-level=ERROR"])
    asyncio.run(client.async_execute(cwd=str(folder), env=environment))  # a loop of its own, which is closed


def _places_without_home(folder: Path) -> dict[str, str]:
    """Settings for a user whose home cannot be written: IPython and Matplotlib would say so in every notebook."""
    home = os.path.expanduser("~")
    if os.path.isdir(home) and os.access(home, os.W_OK):
        return {}
    return {name: str(folder / ".home") for name in ("IPYTHONDIR", "MPLCONFIGDIR") if name not in os.environ}


def kill_all() -> None:
    """Kill the kernels of this process, for when it is interrupted."""
    for kernel in list(_running):
        if (process := getattr(kernel.provisioner, "process", None)) is not None:
            process.kill()
