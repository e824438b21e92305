"""The checkpoint of a training: one safetensors file, with everything but the tensors as JSON in its header.

It holds the network's state, SGD's momentum, the tensors of callbacks, the log so far, and the training it belongs to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.files import one_line, read_tensors, write_tensors
from gkp.training.callback import Callback

_FORMAT = "gkp training checkpoint 1"
Rows = list[dict[str, float]]


class Keeper:
    """Writes the checkpoint of one training and continues from it.

    Args:
        path: The file.
        identity: What must be the same for a training to be continued, as plain JSON types.

    Raises:
        BadInput: The file cannot be written; better now than after an epoch's work.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path, self.identity = path, json.loads(json.dumps(identity))  # as it will be read back
        if path.is_dir():
            raise BadInput(f"{path}: is a folder; give the name of a file for the checkpoint")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise BadInput(f"{path}: cannot be written, for {folder} is not a writable folder; give another file")

    def save(self, net: nn.Module, optimizer: torch.optim.Optimizer, callbacks: Sequence[Callback], rows: Rows) -> None:
        """Write the file atomically. Raises BadInput when it cannot be written."""
        tensors = {f"net.{name}": value for name, value in _held(net).items()}
        for i, p in enumerate(_parameters(optimizer)):
            buffer = optimizer.state[p].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{i}"] = buffer
        for i, callback in enumerate(callbacks):
            tensors.update({f"callback.{i}.{name}": value for name, value in callback.state().items()})
        header = {"format": _FORMAT, "training": json.dumps({"identity": self.identity, "rows": rows})}
        write_tensors(self.path, tensors, header)

    def resume(self, net: nn.Module, optimizer: torch.optim.Optimizer, callbacks: Sequence[Callback]) -> Rows | None:
        """Give network, optimiser and callbacks their state back.

        Returns:
            The rows logged so far; None if there is no file.

        Raises:
            BadInput: The file is no checkpoint, is truncated, or belongs to another training; the network's state is not all
                tensors.
        """
        held = _held(net)
        if not self.path.exists():
            return None
        rows, tensors = self._read()
        found = _below("net.", tensors)
        for name in held.keys() & found.keys() - net.state_dict().keys():
            owner, _, buffer = name.rpartition(".")
            setattr(net.get_submodule(owner), buffer, found.pop(name).to(held[name].device))
        try:
            net.load_state_dict(found)
        except RuntimeError as error:
            raise BadInput(f"{self.path}: does not fit the network ({one_line(error)}); delete it to start anew") from error
        for i, p in enumerate(_parameters(optimizer)):
            if (momentum := tensors.get(f"momentum.{i}")) is not None:
                # in the parameter's own memory format, as SGD itself would have made it
                optimizer.state[p]["momentum_buffer"] = torch.empty_like(p, requires_grad=False).copy_(momentum)
        for i, callback in enumerate(callbacks):
            callback.restore(_below(f"callback.{i}.", tensors))
        return rows

    def _read(self) -> tuple[Rows, dict[str, Tensor]]:
        try:
            tensors, header = read_tensors(self.path)
            training = json.loads(header["training"]) if header.get("format") == _FORMAT else None
        except (OSError, KeyError, ValueError) as error:
            raise BadInput(
                f"{self.path}: cannot be read as a training checkpoint ({one_line(error)}); it is truncated "
                "or not one: delete it to start anew"
            ) from error
        if training is None:
            raise BadInput(f"{self.path}: is not a training checkpoint; give another file name")
        for name in {**self.identity, **training["identity"]}:
            if (there := training["identity"].get(name)) != (here := self.identity.get(name)):
                raise BadInput(
                    f"{self.path}: belongs to a training with another {name} ({_difference(there, here)}); "
                    "give another file, or delete it to start anew"
                )
        return training["rows"], tensors


def logged_rows(path: Path) -> Rows:
    """The rows of the training that a checkpoint belongs to, from its header alone; none where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["training"])["rows"]
    except (SafetensorError, OSError, KeyError, ValueError):
        return []


def _held(net: nn.Module) -> dict[str, Tensor]:
    """The network's state, and the buffers that its state dict leaves out. Raises BadInput for what is no tensor."""
    held = {**dict(net.named_buffers()), **net.state_dict()}
    if odd := next((name for name, value in held.items() if not isinstance(value, Tensor)), None):
        raise BadInput(f"{odd} is no tensor but extra state, which a checkpoint cannot hold; train without a checkpoint")
    return held


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _difference(there: Any, here: Any) -> str:
    """Both values if they are short; of dicts, those of the fields that differ, at most three."""
    if isinstance(there, dict) and isinstance(here, dict):
        changed = [k for k in {**here, **there} if there.get(k) != here.get(k)][:3]
        return ", ".join(f"{k} {_difference(there.get(k), here.get(k))}" for k in changed)
    if isinstance(there, dict | list) or isinstance(here, dict | list):
        return "differs"
    return f"{_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."
