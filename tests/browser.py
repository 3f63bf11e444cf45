"""Chromium without a window, by the DevTools protocol over a pipe; what it is told and what it shows."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
]
_SECONDS = 30


class Browser:
    """One page."""

    def __init__(self, requests: int, replies: int) -> None:
        """The ends of two pipes."""
        self._requests, self._replies = requests, os.fdopen(replies, "rb")
        self._number = 0
        self._session = {}
        self.errors = []  # what the console has been told, and requests that the page's policy has forbidden
        (page,) = [t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """The protocol's answer to one of its methods."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            reply = json.loads(self._message())
            if reply.get("id") == self._number:
                assert "error" not in reply, reply
                return reply["result"]
            if reply.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.errors.append(reply["params"])

    def _message(self) -> bytes:
        found = bytearray()
        while True:
            byte = self._replies.read(1)
            assert byte, "the browser has ended"
            if byte == b"\0":
                return bytes(found)
            found += byte

    def open(self, url: str, *, width: int = 1100, height: int = 800, dark: bool = False) -> None:
        """Load a page and wait until it is there."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Page.navigate", url=url)
        self.until(f"location.href == {json.dumps(url)} && document.readyState == 'complete'")

    def value(self, expression: str) -> Any:
        """What a piece of JavaScript comes to in the page."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait for a condition."""
        end = time.monotonic() + _SECONDS
        while not self.value(expression):
            assert time.monotonic() < end, f"not so after {_SECONDS} s: {expression}"
            time.sleep(0.02)

    def choose(self, selector: str, path: Any) -> None:
        """What a person does with a file dialog."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: Any) -> None:
        """The whole page as a PNG file."""
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(picture))


@contextlib.contextmanager
def browser(folder: Any) -> Iterator[Browser]:
    """A browser whose profile is in `folder`."""
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()

    def place() -> None:  # Chromium reads from 3 and writes to 4
        copies = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(copies[0], 3)
        os.dup2(copies[1], 4)

    process = subprocess.Popen(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
        preexec_fn=place,
        close_fds=False,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        process.kill()
        process.wait()
        os.close(ours_out)
