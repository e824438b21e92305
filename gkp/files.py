"""Where every file is looked for: each folder of GKP_DATA, then the repository's data/, then the user's cache.

`GKP_DATA` is a list of folders separated as `PATH` is. Downloads go to the cache, and only when no folder has the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import threading
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from platformdirs import user_cache_path
from safetensors import SafetensorError

from gkp.errors import BadInput


def cache_folder() -> Path:
    """The user's cache folder of this package (it may not exist yet)."""
    return user_cache_path("gkp")


def checkout() -> Path | None:
    """The root of the checkout this package runs from, or None if it was installed into site-packages."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else None


def output_folder() -> Path:
    """Where a run leaves figures and tables: GKP_OUT (which `gkp reproduce` sets), else build/ of the checkout."""
    return Path(os.environ["GKP_OUT"]) if os.environ.get("GKP_OUT") else (checkout() or Path.cwd()) / "build"


def given_folders() -> list[Path]:
    """The folders of GKP_DATA, absolute."""
    return [Path(part).expanduser().resolve() for part in os.environ.get("GKP_DATA", "").split(os.pathsep) if part]


def searched_folders() -> list[Path]:
    """Where a file is looked for, in this order: the folders of GKP_DATA, the repository's data/, the user's cache."""
    folders = given_folders()
    if (root := checkout()) is not None:
        folders.append(root / "data")
    return [*folders, cache_folder()]


def locate(relative: str) -> Path | None:
    """The first file or folder of this relative path in the folders searched, or None."""
    return next((path for folder in searched_folders() if (path := folder / relative).exists()), None)


def fetch(relative: str, *, url: str, sha256: str, what: str) -> Path:
    """The path of a file: one the user has, or the cache's copy, downloaded from url if need be and checked by sha256.

    relative: path below the folders searched; what: its name in error messages. sha256: 64 hex digits, or the first ones,
    as upstream's file names carry them. Only the cache's copy is compared with it: a file in the user's own folders may be
    in another format. Raises BadInput when it cannot be had.
    """
    import pooch  # here: it brings tqdm.auto, which warns in every kernel without widgets

    own = next((path for folder in searched_folders()[:-1] if (path := folder / relative).is_file()), None)
    if own is not None:
        return own
    target = cache_folder() / relative
    if not _has_sha256(target, sha256) and not reachable(url):
        command = f"curl -L --create-dirs -o {shlex.quote(str(target))} {url}"
        raise BadInput(not_found(what, relative, url, command=command))
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
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a ValueError
        raise BadInput(
            f"{what}: download from {url} to {target} failed ({one_line(error)}); check the network and the "
            f"folder, or put the file {relative} in a folder named by GKP_DATA"
        ) from error


def _has_sha256(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest().startswith(sha256)


def reachable(url: str, timeout: float = 8) -> bool:
    """Whether the server answers within `timeout` seconds, proxies honoured.

    In a thread because looking up a host name knows no time-out and can hang for a minute without a network.
    """
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout).close()
            answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)  # it refuses HEAD, but it is there: let the download itself tell
        except OSError:
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answers == [True]


def not_found(what: str, relative: str, url: str, *, command: str) -> str:
    """The one line that says a file is missing, where it was looked for, and which command gets it."""
    searched = ", ".join(f"{folder}{'' if folder.is_dir() else ' (no such folder)'}" for folder in searched_folders())
    return (
        f"{what}: {relative} is in none of the folders searched ({searched}) and {url} cannot be reached; "
        f"get it with `{command}`, or name the folder that holds it in GKP_DATA"
    )


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make `<path>.partial`, then rename it to `path`, which a kill leaves old or new, never half written.

    Makes the folder if there is none. Raises BadInput where that fails, `path` being left alone.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise BadInput(
            f"{path}: cannot be written ({one_line(error)}); give a file in a folder that is writable and has room"
        ) from error


def replace_files(folder: Path, contents: Mapping[str, bytes], what: str) -> Path:
    """The folder, now holding each of these files (name -> content), all of them written beside before the first is renamed.

    what: their name in the message of the BadInput that is raised where it fails, nothing being left half done.
    """
    partials = {folder / name: folder / f"{name}.partial" for name in contents}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, partial in partials.items():
            partial.write_bytes(contents[target.name])
        for target, partial in partials.items():
            os.replace(partial, target)
    except OSError as error:
        for partial in partials.values():
            with contextlib.suppress(OSError):  # the folder itself may be the problem
                partial.unlink(missing_ok=True)
        raise BadInput(f"cannot write {what} to {folder} ({error.strerror}); choose a folder you may write to") from error
    return folder


def one_line(error: Exception) -> str:
    """The error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
