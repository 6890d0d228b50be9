"""A headless Chromium for tests of pages, driven over a pipe by the DevTools protocol: no socket and no server."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

_FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --mute-audio --hide-scrollbars
--autoplay-policy=no-user-gesture-required --remote-debugging-pipe""".split()
_NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND"
# Chromium reads commands from descriptor 3 and writes answers to 4, wherever the pipes are in this process.
_LAUNCH = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A page in a browser of its own, without network: `with Browser() as browser: browser.open(path)`.

    requests : addresses that the page asked for, data: ones left out, the page's own among them
    errors   : console errors and warnings, exceptions that nothing caught, and what the browser itself complains of
    dialogs  : kinds of the dialogs that opened, "beforeunload" among them; each is accepted
    """

    def __init__(self, *, width: int = 1000, height: int = 800, seconds: float = 60.0) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        self.width, self.height, self.seconds = width, height, seconds
        self._loaded = False
        self._last, self._buffer = 0, b""
        self._answers: dict[int, dict[str, Any]] = {}
        self._session: str | None = None

    def __enter__(self) -> Browser:
        assert BINARY is not None
        self._profile = tempfile.mkdtemp(prefix="knn-browser-")
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        command = [sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out), BINARY, *_FLAGS, _NO_NETWORK]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={self._profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._call(f"{domain}.enable")
            self.resize(self.width, self.height)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._to)
        os.close(self._from)
        with suppress(subprocess.TimeoutExpired):  # the browser ends with its pipe
            self._process.wait(5)
        with suppress(ProcessLookupError):  # and so do its children, or else by force: they are a session of their own
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def resize(self, width: int, height: int, *, dark: bool = False, scripts: bool = True) -> None:
        self.width, self.height = width, height
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Emulation.setScriptExecutionDisabled", value=not scripts)

    def open(self, path: Path) -> None:
        """Load a file and wait until it has."""
        self._loaded = False
        answer = self._call("Page.navigate", url=path.resolve().as_uri())
        assert "errorText" not in answer, answer
        deadline = time.monotonic() + self.seconds
        while not self._loaded:
            self._take(deadline)

    def before(self, script: str) -> None:
        """Run a script in each page that is opened from now on, before its own."""
        self._call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript, waited for where it is a promise."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def save_to(self, folder: Path) -> None:
        """Let the page save files into a folder, without asking."""
        self._call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def click(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window and press its button there."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the mouse button at a place of the window, move to another, and let it go there."""
        between = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=start[0], y=start[1])
        self._call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], button="left", clickCount=1)
        for x, y in (between, end):
            self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
        self._call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], button="left", clickCount=1)

    def pdf(self) -> bytes:
        """What the page prints, as PDF on A4."""
        answer = self._call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)
        return base64.b64decode(answer["data"])

    def press(self, key: str, text: str = "", *, control: bool = False) -> None:
        """Press a key, as JavaScript names it; `text` is what it writes."""
        held = 2 if control else 0
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, modifiers=held)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=held)

    def write(self, text: str) -> None:
        """Put a text in the place of what is selected in the field that has the focus."""
        self._call("Input.insertText", text=text)

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """A PNG of what is seen, or of the `whole` page."""
        clip = {}
        if whole:
            height = self.evaluate("document.documentElement.scrollHeight")
            clip = {"clip": {"x": 0, "y": 0, "width": self.width, "height": height, "scale": 1}}
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **clip)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        number = self._last  # a dialog that opens meanwhile is answered by a call in this one
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        deadline = time.monotonic() + self.seconds
        while number not in self._answers:
            self._take(deadline)
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _take(self, deadline: float) -> None:
        """Read what comes next, at least a piece of a message."""
        ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"the browser said nothing for {self.seconds} s")
        data = os.read(self._from, 1 << 20)
        if not data:
            raise RuntimeError("the browser ended")
        *messages, self._buffer = (self._buffer + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message["method"], message["params"])

    def _note(self, method: str, said: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent" and not said["request"]["url"].startswith("data:"):
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(said["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(said["args"]))
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(said["type"])
            self._call("Page.handleJavaScriptDialog", accept=True)
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.errors.append(said["entry"]["text"])
