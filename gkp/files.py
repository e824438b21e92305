"""Where files are found and fetched, and how they are written: atomically, in one place.

A file is looked for in each folder of GKP_DATA (a list of folders separated as in PATH), then in the repository's data/, then
in the user's cache. Downloads go to the cache, and only when no folder has the file.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shlex
import threading
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkp.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}
Content = str | bytes | Callable[[Path], object]


def cache_folder() -> Path:
    """The user's cache folder of this package (it may not exist yet).

    Raises:
        BadInput: The user has no home folder, as an unknown one in a container.
    """
    from platformdirs import user_cache_path

    try:
        return user_cache_path("gkp")
    except (RuntimeError, KeyError):
        need = "set XDG_CACHE_HOME to a folder for downloads, or GKP_DATA to a folder that holds the files"
        raise BadInput(f"this user has no home folder to download to; {need}") from None


def checkout() -> Path | None:
    """The root of the checkout this package runs from, or None if it was installed into site-packages."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else None


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as the user gave it, with the home folder in place of "~" where there is one."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises for a user without a home


def given_folders() -> list[Path]:
    """The folders of GKP_DATA, absolute."""
    return [user_path(part).resolve() for part in os.environ.get("GKP_DATA", "").split(os.pathsep) if part]


def searched_folders(*, cache: bool = True) -> list[Path]:
    """The folders in which files are looked for, in order: those of GKP_DATA, the repository's data/, the user's cache."""
    folders = [*given_folders(), *([root / "data"] if (root := checkout()) else [])]
    if cache:
        with contextlib.suppress(BadInput):  # a user without one may have the file elsewhere
            folders.append(cache_folder())
    return folders


def locate(relative: str) -> Path | None:
    """The first file or folder of this relative path in the folders searched, or None; one that is closed to us is no error."""
    return next((path for folder in searched_folders() if os.path.exists(path := folder / relative)), None)


def fetch(relative: str, *, url: str, sha256: str, what: str) -> Path:
    """Find a file in the user's folders, or download it into the cache and check it.

    Only the copy in the cache is compared with `sha256`: a file in the user's own folders may be in another format.

    Args:
        relative: Path below the folders searched.
        url: Address of the original file.
        sha256: 64 hex digits, or the first ones, as the file names of some publishers carry them.
        what: Name of the file in error messages.

    Returns:
        The path of the file.

    Raises:
        BadInput: It is nowhere and cannot be downloaded.
    """
    own = next((path for folder in searched_folders(cache=False) if os.path.isfile(path := folder / relative)), None)
    if own is not None:
        return own
    target = cache_folder() / relative
    if not _has_sha256(target, sha256) and not reachable(url):
        command = f"curl -L --create-dirs -o {shlex.quote(str(target))} {url}"
        raise BadInput(not_found(what, relative, url, command=command))
    import pooch  # late: it brings tqdm.auto, which warns in every kernel without widgets

    try:
        if len(sha256) < 64 and not _has_sha256(target, sha256):
            target.unlink(missing_ok=True)  # pooch mends a damaged copy only where it knows the whole hash
        pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}" if len(sha256) == 64 else None,
            fname=target.name,
            path=target.parent,
            downloader=pooch.HTTPDownloader(timeout=30),
        )
        if not _has_sha256(target, sha256):
            target.unlink()
            raise ValueError(f"its sha256 does not begin with {sha256}")
        return target
    except (OSError, ValueError) as error:  # the errors of requests are OSErrors; a wrong hash is a ValueError
        raise BadInput(
            f"{what}: download from {url} to {target} failed ({one_line(error)}); check the network and the "
            f"folder, or put the file {relative} in a folder named by GKP_DATA"
        ) from error


def reachable(url: str, timeout: float = 8) -> bool:
    """Whether the server answers within `timeout` seconds, proxies honoured.

    Runs in a thread because looking up a host name has no time-out and can hang for a minute without a network.
    """
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout).close()
            answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)  # it refuses HEAD but is there: the download itself will show
        except Exception:  # no network, no such host, an answer that is not HTTP
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answers == [True]


def not_found(what: str, relative: str, url: str, *, command: str) -> str:
    """The error line for a missing file: where it was looked for, and the command that gets it."""
    searched = ", ".join(f"{folder}{'' if os.path.isdir(folder) else ' (no such folder)'}" for folder in searched_folders())
    return (
        f"{what}: {relative} is in none of the folders searched ({searched}) and {url} cannot be reached; "
        f"get it with `{command}`, or name the folder that holds it in GKP_DATA"
    )


def problem_with(path: Path, *, text: bool = False) -> str:
    """What a file is instead of one of data, and how to mend that, as its first bytes tell.

    Args:
        path: The file, which need not be there.
        text: Whether the data is text, such as JSON.

    Returns:
        The end of a sentence about the path; "" for a file that nothing is wrong with so far.
    """
    if os.path.islink(path) and not os.path.exists(path):
        return f"is a link to {os.readlink(path)}, which is not there; get what it stands for (git annex get, datalad get)"
    if os.path.isdir(path):
        return "is a folder; give the file inside it"
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for its writer
            return "is not a regular file; give one"
        with open(path, "rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        return "is not there; check its path"
    except OSError as error:
        return f"cannot be read ({error.strerror}); make it readable"
    if not start.strip(b"\0"):
        return f"is {'cut off before its first bytes' if start else 'empty'}; copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file; run `git lfs pull` in its repository, or download the file itself"
    if packed := next((name for magic, name in _PACKED.items() if start.startswith(magic)), None):
        return f"is packed ({packed}); unpack it and give the file inside"
    words = " ".join(start.decode("utf-8-sig", errors="ignore").split())
    if words.lower().startswith(("<!doctype", "<html", "<head", "<?xml", "<!--")):
        return "is a web page, not the file; download the file itself (on GitHub: Raw)"
    if not text and words.startswith("{") and '"weight_map"' in start.decode("utf-8", errors="ignore"):
        return "is the index of weights in several files; join them into one, or give the one that has all layers"
    if not text and len(start) >= 8 and start.isascii() and words.isprintable():
        return f"is text ({words[:40]!r}), not data; download the file itself"
    return ""


def file_sha256(path: Path) -> str:
    """The sha256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_sha256(value: Any) -> str:
    """The sha256 (hex) of plain JSON types, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _has_sha256(path: Path, sha256: str) -> bool:
    return os.path.isfile(path) and file_sha256(path).startswith(sha256)


def replace_file(path: Path, content: Content) -> Path:
    """Write a file atomically: a kill, or another writer, leaves the old file or a new one, never half of it. Makes its folder.

    Args:
        path: The file to write, "~" for the home folder.
        content: Text, bytes, or a function that writes the path it is given.

    Returns:
        The path.

    Raises:
        BadInput: It cannot be written; the old file is left alone.
    """
    hint = "give a file in a folder that is writable and has room"
    replace_all({(target := user_path(path)): content}, lambda problem: f"{path}: cannot be written ({problem}); {hint}")
    return target


def replace_files(folder: Path, contents: Mapping[str, Content], what: str) -> Path:
    """Write several files of one folder, all of them beside their targets before the first is renamed.

    Args:
        folder: The folder; it is made if there is none.
        contents: File name -> content, as for `replace_file`.
        what: Name of the files in the error message.

    Returns:
        The folder.

    Raises:
        BadInput: One of them cannot be written; nothing is left half done.
    """
    folder, hint = user_path(folder), "choose a folder you may write to"
    targets = {folder / name: content for name, content in contents.items()}
    replace_all(targets, lambda problem: f"cannot write {what} to {folder} ({problem}); {hint}")
    return folder


def replace_all(contents: Mapping[Path, Content], message: Callable[[str], str]) -> None:
    """Write files and rename them when all are written; makes their folders. `message` makes BadInput of what went wrong."""
    partials = {path: _beside(path) for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(partials[path])
            else:
                partials[path].write_bytes(content.encode() if isinstance(content, str) else content)
        for path, partial in partials.items():
            os.replace(partial, path)
    except OSError as error:
        raise BadInput(message(error.strerror or one_line(error))) from error
    finally:
        for partial in partials.values():
            with contextlib.suppress(OSError):  # the folder itself may be the problem
                partial.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A name beside a file that is of this call alone. What killed processes of this machine left there is removed."""
    mark = f"{path.name}.{os.uname().nodename}-"
    for left in path.parent.glob(f"{glob.escape(mark)}*.partial"):
        with contextlib.suppress(OSError, ValueError):  # of another user, or no name of ours
            try:
                os.kill(int(left.name.removeprefix(mark).partition("-")[0]), 0)  # asks whether there is such a process
            except ProcessLookupError:
                left.unlink()
    return path.with_name(f"{mark}{os.getpid()}-{os.urandom(4).hex()}.partial")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file atomically.

    Args:
        path: The file to write.
        tensors: Tensors by name; they are copied to the CPU, contiguous and apart from each other.
        header: Text by name. Give one entry if the bytes must be the same each time: several are written in any order.

    Raises:
        BadInput: It cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    apart = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}

    def save(partial: Path) -> None:
        try:
            save_file(apart, partial, metadata=dict(header))
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise OSError(one_line(error)) from error

    replace_file(path, save)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        Its tensors, copied out of the file, and the text of its header, both by name.

    Raises:
        OSError: It cannot be read.
        ValueError: It is truncated, not a safetensors file, or not there.
    """
    from safetensors import SafetensorError, safe_open

    if problem := problem_with(path):
        raise ValueError(problem)
    try:
        with safe_open(path, framework="pt") as file:
            # clones, since what safetensors gives may be the mapped file itself, soon to be replaced
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(one_line(error)) from error


def one_line(error: object) -> str:
    """The error's message, or whatever else, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
