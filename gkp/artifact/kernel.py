"""Execute notebooks, or open them in JupyterLab, with a kernel of this interpreter whatever kernels are installed."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import NoReturn
from weakref import WeakSet

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from gkp.artifact.experiments.store import default_store
from gkp.files import given_folders

_running: WeakSet[OwnKernel] = WeakSet()


class OwnKernels(KernelSpecManager):
    """Knows one kernel, which ipykernel provides for this interpreter; folders of kernels are ignored."""

    def _kernel_dirs_default(self) -> list[str]:
        return []


class OwnKernel(AsyncKernelManager):
    """Manages a kernel of this interpreter."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        _running.add(self)

    @property
    def kernel_spec(self) -> KernelSpec:
        """The specification of the kernel."""
        return OwnKernels().get_kernel_spec("python3")

    async def _async_interrupt_kernel(self) -> None:
        """Do nothing: jupyter_client interrupts kernels before shutdown, which an idle kernel reports as an error."""


def kernel_environment() -> dict[str, str]:
    """The environment of a kernel, which finds this package, its data and its cells from any current folder."""
    root = str(Path(__file__).resolve().parents[2])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "GKP_DATA": os.pathsep.join(map(str, given_folders())),
        "GKP_CELLS": str(default_store().root),
    }


def execute(book: NotebookNode, folder: Path) -> None:
    """Execute a notebook in place, with `folder` as the kernel's current folder."""
    # below "error", the kernel warns that it listens to this machine
    client = NotebookClient(book, kernel_manager_class=OwnKernel, timeout=None, extra_arguments=["--log-level=ERROR"])
    asyncio.run(client.async_execute(cwd=str(folder), env=kernel_environment()))  # a loop of its own, which is closed


def lab(folder: Path, *, browser: bool = True, port: int | None = None) -> NoReturn:
    """Replace this process by JupyterLab with a single kernel, that of this interpreter.

    Args:
        folder: The folder of notebooks.
        browser: Whether to open a browser.
        port: The port on this machine; None for 8888 or the next free one.
    """
    options = [f"--ServerApp.root_dir={folder}", f"--ServerApp.kernel_spec_manager_class={__name__}.{OwnKernels.__name__}"]
    options += [] if browser else ["--no-browser"]
    options += [] if port is None else [f"--ServerApp.port={port}"]
    options += ["--allow-root"] if os.geteuid() == 0 else []  # as in most containers; it listens to this machine alone
    os.execve(sys.executable, [sys.executable, "-m", "jupyterlab", *options], kernel_environment())


def kill_all() -> None:
    """Kill all kernels of this process, when it is interrupted."""
    for kernel in list(_running):
        if (process := getattr(kernel.provisioner, "process", None)) is not None:
            process.kill()
