"""State dicts from a file that may be anything: what torch.save or safetensors wrote, or what came in its place.

Files are known by their bytes, whatever their names end in. No code of a file is ever run: torch reads it with `weights_only`,
and objects of it that are neither tensors nor plain Python become objects that do nothing.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from gkp.errors import BadInput
from gkp.files import one_line, problem_with, read_tensors

_DEPTH = 6  # of containers within each other that are looked through
_TORCH_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_DANGEROUS = frozenset("os posix nt sys subprocess socket shutil pty runpy importlib ctypes webbrowser".split())  # noqa: SIM905
_DANGEROUS_BUILTINS = frozenset("eval exec compile open __import__ input breakpoint".split())  # noqa: SIM905
_ALONE = "save the state dict alone, torch.save(net.state_dict(), PATH), where you trust it"
_OTHER_FORMATS = {
    b"\x89HDF": "an HDF5 file, as Keras writes them; convert it to a state dict of PyTorch",
    b"\x93NUMPY": "an array of numpy; give a state dict that torch.save or safetensors wrote",
    b"GGUF": "a GGUF file; give a state dict that torch.save or safetensors wrote",
}


class _Inert:
    """Stands for an object of a file, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read every state dict of a file: each mapping from names to tensors in it, however deep.

    Args:
        path: A file by torch.save, old or new, or by safetensors.

    Returns:
        By place in the file: "" for the file itself, "state_dict", "ema/model" and so on; what is no tensor is left out.

    Raises:
        BadInput: The file is not there, a folder, a Git LFS pointer, a web page or text; it is empty, truncated, damaged or
            packed; it holds a pickled network or no state dict; or it asks for code to be run.
    """
    if problem := problem_with(path) or _other_format(path):
        raise BadInput(f"{path} {problem}")
    try:
        content = read_tensors(path)[0] if _is_safetensors(path) else _read_torch(path)
    except BadInput:
        raise
    except pickle.UnpicklingError as error:
        reason = one_line(error).rpartition("WeightsUnpickler error: ")[2].partition(" Check the doc")[0][:120]
        if reason.startswith("Only persistent_load of storage"):  # of the source of a module, in files before torch 1.6
            raise BadInput(f"{path} holds a pickled network, whose own code would have to be run; {_ALONE}") from error
        raise BadInput(f"{path} cannot be read without running its code ({reason}); {_ALONE}") from error
    except Exception as error:  # whatever the decoders of damaged files raise
        reason = one_line(error)[:120]
        raise BadInput(f"{path} is truncated or no checkpoint ({reason}); delete it and fetch it again") from error
    states = dict(_states(content))
    if (net := _pickled_network(content)) and not any(states):
        raise BadInput(f"{path} holds a pickled {net}, whose own code would have to be run; {_ALONE}")
    if not states:
        raise BadInput(
            f"{path} holds {_described(content)}, not a state dict; save one with torch.save(net.state_dict(), PATH)"
        )
    return states


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _other_format(path: Path) -> str:
    start = _start(path)
    if start[257:262] == b"ustar":
        return "is a tar archive; unpack it and give the file inside"
    if start.startswith(b"\x80") and not start.startswith(_TORCH_BEFORE_1_6) and not _is_safetensors(path):
        return f"is a pickle that torch.save has not written; {_ALONE}"
    return next((f"is {what}" for magic, what in _OTHER_FORMATS.items() if start.startswith(magic)), "")


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a header of JSON, and the header."""
    start = _start(path)
    return start[8:9] == b"{" and start[6:8] == b"\0\0"


def _read_torch(path: Path) -> Any:
    """What torch.save wrote, with `_Inert` objects in place of those that are neither tensors nor plain Python."""
    zipped = _start(path).startswith(b"PK\x03\x04")
    names = _zipped_globals(path) if zipped else _old_globals(path)
    for module, name in sorted(names):
        if module.partition(".")[0] in _DANGEROUS or (module == "builtins" and name in _DANGEROUS_BUILTINS):
            raise BadInput(
                f"{path} asks for {module}.{name} to be run, which weights never need; do not open it elsewhere either"
            )
    with _inert(names), warnings.catch_warnings(), path.open("rb") as file:  # of a path, torch would believe the suffix
        warnings.simplefilter("ignore")  # of old protocols and storages
        return torch.load(file, map_location="cpu", weights_only=True)


def _zipped_globals(path: Path) -> set[tuple[str, str]]:
    """The (module, name) of all objects that a checkpoint asks for. Raises ValueError where its checksums say it is damaged."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.namelist()
        if any("/code/" in entry for entry in entries):
            alone = "torch.save(torch.jit.load(PATH).state_dict(), NEW)"
            raise BadInput(f"{path} is a TorchScript archive; save its state dict alone, {alone}")
        if not any(entry.endswith("/data.pkl") for entry in entries):
            raise BadInput(f"{path} is a zip archive without weights of torch; unpack it and give the file inside")
        damaged = [entry for entry in entries if not _is_sound(archive, entry)]
    if 0 < len(damaged) < len(entries):  # of all, torch can be told not to write checksums
        raise ValueError(f"{damaged[0]} is not what was written")
    return _globals(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"))


def _is_sound(archive: zipfile.ZipFile, entry: str) -> bool:
    try:
        with archive.open(entry) as file:
            while file.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _old_globals(path: Path) -> set[tuple[str, str]]:
    """The same of a checkpoint before torch 1.6: five pickles, of which the fourth is what was saved, and then bytes."""
    with path.open("rb") as file:
        return set().union(*(_globals(file) for _ in range(4)))


def _globals(pickled: bytes | IO[bytes]) -> set[tuple[str, str]]:
    found = set()
    for code, argument, _ in pickletools.genops(pickled):
        if code.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            found.add((IMPORT_MAPPING.get(module, module), name))  # from the names of Python 2, which protocol 2 has
    return found


@contextmanager
def _inert(names: set[tuple[str, str]]) -> Iterator[None]:
    """Let torch put `_Inert` objects where a file asks for these, but for those that it reads itself."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([_stand_in(*name) for name in names])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _stand_in(module: str, name: str) -> Any:
    if (module, name) == ("collections", "defaultdict"):  # is filled like a dict

        def made(*_: Any) -> Any:
            return {}

        made.__module__, made.__name__, made.__qualname__ = module, name, name
        return made
    return type(name, (_Inert,), {"__module__": module, "__qualname__": name})


def _states(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping from names to tensors within `value`, with its place."""
    if isinstance(value, Mapping):
        inside = {key: item for key, item in value.items() if isinstance(key, str)}
        if tensors := {key: item.detach() for key, item in inside.items() if isinstance(item, Tensor)}:
            yield "/".join(place), tensors
    elif isinstance(value, list | tuple):
        inside = {str(i): item for i, item in enumerate(value)}
    else:
        return
    for key, item in inside.items() if len(place) < _DEPTH else ():
        yield from _states(item, (*place, key))


def _pickled_network(content: Any) -> str:
    """The class of a network that was pickled whole, as the content or as one of its entries, or ""."""
    for value in (content, *(content.values() if isinstance(content, Mapping) else ())):
        if isinstance(value, _Inert) and isinstance(state := getattr(value, "state", None), Mapping) and "_modules" in state:
            return f"{type(value).__module__}.{type(value).__qualname__}"
    return ""


def _described(content: Any) -> str:
    if isinstance(content, Tensor):
        return f"a tensor {tuple(content.shape)}"
    if isinstance(content, _Inert):
        return f"a pickled {type(content).__module__}.{type(content).__qualname__}"
    if isinstance(content, Mapping):
        names = [str(key)[:40] for key in content]
        return f"a dict of {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "an empty dict"
    return f"a {type(content).__name__}"
