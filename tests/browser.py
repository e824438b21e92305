"""A headless Chromium for tests, spoken to through a pipe: no driver, no port, no network.

Found as GKP_CHROMIUM, or as chromium, chromium-browser or google-chrome on the PATH (`apt-get install chromium`). Tests that
need one are skipped where there is none. axe-core, which looks for barriers, is found as GKP_AXE (the path of axe.min.js) or in
node_modules of the checkout (`npm install --no-save axe-core`).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
_SPEAK = """import fcntl, os, sys
ours = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, theirs in zip(ours, (3, 4)):
    os.dup2(end, theirs)  # it reads from 3 and writes to 4
os.execv(sys.argv[3], sys.argv[3:])"""
SECONDS = 60.0  # that any answer may take


def find_chromium() -> str:
    """The program; the test is skipped where there is none."""
    names = (os.environ.get("GKP_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, filter(None, names))), None)
    if found is None:
        pytest.skip("needs a browser: apt-get install chromium, or the path of one in GKP_CHROMIUM")
    return found


def find_axe() -> str:
    """The source of axe-core; the test is skipped where it is not there."""
    places = (Path(os.environ.get("GKP_AXE") or "axe.min.js"), ROOT / "node_modules" / "axe-core" / "axe.min.js")
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        pytest.skip("needs axe-core: npm install --no-save axe-core, or the path of axe.min.js in GKP_AXE")
    return found.read_text(encoding="utf-8")


class Browser:
    """One tab. What it asked for and complained of since `open` is in `requests` and `complaints`.

    Args:
        program: the browser.
        profile: a folder for what it writes.
    """

    def __init__(self, program: str, profile: Path) -> None:
        quiet = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--mute-audio",
        )
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        options = (*quiet, "--disable-dev-shm-usage", f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SPEAK, str(commands), str(answers), program, *options],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._last, self._unread, self._session = 0, b"", ""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._loaded = False
        try:
            targets = self.call("Target.getTargets")["targetInfos"]
            page = next(target["targetId"] for target in targets if target["type"] == "page")
            self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        self._last += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._last, "method": method, "params": params, **session}
        rest = json.dumps(message).encode() + b"\0"
        while rest:
            rest = rest[os.write(self._commands, rest) :]
        found = self._wait(lambda answer: answer.get("id") == self._last, method)
        assert "error" not in found, f"{method}: {found.get('error')}"
        return found["result"]

    def open(self, address: str, *, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        """Load a page at this size of window, in light or dark, and wait for it."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", media="screen", features=scheme)
        self.call("Page.navigate", url="about:blank")
        self.evaluate("new Promise(done => setTimeout(done, 20))")
        self.requests, self.complaints, self._loaded = [], [], False
        self.call("Page.navigate", url=address)
        if not self._loaded:
            self._wait(lambda answer: answer.get("method") == "Page.loadEventFired", address)
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 20)))")

    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript; of a promise, what it comes to."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """Save what is seen, or the whole page, as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _wait(self, wanted: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The first message that is wanted; the others are noted."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            while b"\0" in self._unread:
                line, _, self._unread = self._unread.partition(b"\0")
                message = json.loads(line)
                self._note(message)
                if wanted(message):
                    return message
            if select.select([self._answers], [], [], 1.0)[0]:
                chunk = os.read(self._answers, 1 << 20)
                assert chunk, f"the browser ended at {what}"
                self._unread += chunk
        raise AssertionError(f"no answer to {what} within {SECONDS:.0f} s")

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"].get("text")))
            case "Runtime.consoleAPICalled":
                self.complaints.append(f"{params['type']}: {[value.get('value') for value in params['args']]}")
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
