"""The file a training is resumed from: one safetensors file, tensors inside, everything else as JSON in its header.

It holds the net's state, SGD's momentum, callbacks' tensors, the log so far, and what training it belongs to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gkp.errors import BadInput
from gkp.files import one_line, replace_file

if TYPE_CHECKING:
    from gkp.training.callback import Callback

_FORMAT = "gkp training checkpoint 1"
Rows = list[dict[str, float]]


class Keeper:
    """Writes one training's checkpoint and continues from it. identity: what must agree, as plain JSON types."""

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path, self.identity = path, json.loads(json.dumps(identity))  # as it will be read back
        if path.is_dir():
            raise BadInput(f"{path}: is a folder; give the name of a file for the checkpoint")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):  # say so now, not after an epoch's work
            raise BadInput(f"{path}: cannot be written, for {folder} is not a writable folder; give another file")

    def save(self, net: nn.Module, optimizer: torch.optim.Optimizer, callbacks: Sequence[Callback], rows: Rows) -> None:
        """Replace the file, whole or not at all. Raises BadInput when it cannot be written."""
        tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
        for i, p in enumerate(_parameters(optimizer)):
            buffer = optimizer.state[p].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{i}"] = buffer
        for i, callback in enumerate(callbacks):
            tensors.update({f"callback.{i}.{name}": value for name, value in callback.state().items()})
        # clones, since safetensors refuses tensors that share memory
        tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        header = {"format": _FORMAT, "training": json.dumps({"identity": self.identity, "rows": rows})}
        replace_file(self.path, lambda partial: save_file(tensors, partial, metadata=header))

    def resume(self, net: nn.Module, optimizer: torch.optim.Optimizer, callbacks: Sequence[Callback]) -> Rows | None:
        """The rows logged so far, after the net, optimizer and callbacks took their state back; None without a file.

        Raises BadInput when the file is no checkpoint, is truncated, or belongs to another training.
        """
        if not self.path.exists():
            return None
        rows, tensors = self._read()
        net_state = _below("net.", tensors)
        try:
            net.load_state_dict(net_state)
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
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                # clones, since what safetensors gives may be the mapped file itself, soon to be replaced
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            if header.get("format") != _FORMAT:
                raise BadInput(f"{self.path}: is not a training checkpoint; give another file name")
            training = json.loads(header["training"])
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise BadInput(
                f"{self.path}: cannot be read as a training checkpoint ({one_line(error)}); it is truncated "
                "or not one: delete it to start anew"
            ) from error
        for name, here in self.identity.items():
            there = training["identity"].get(name)
            if there != here:
                raise BadInput(
                    f"{self.path}: belongs to a training with another {name} ({_difference(there, here)}); "
                    "give another file, or delete it to start anew"
                )
        return training["rows"], tensors


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _difference(there: Any, here: Any) -> str:
    """Both values when they are short enough to tell apart; of dicts, those of the fields that differ, at most three."""
    if isinstance(there, dict) and isinstance(here, dict):
        changed = [k for k in {**here, **there} if there.get(k) != here.get(k)][:3]
        return ", ".join(f"{k} {_difference(there.get(k), here.get(k))}" for k in changed)
    if isinstance(there, dict | list) or isinstance(here, dict | list):
        return "differs"
    return f"{_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."
