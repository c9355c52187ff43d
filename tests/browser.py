"""A page in headless Chromium, asked through its debugging pipe: what a person would see, without further packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from itertools import count
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """``Page(file, folder)``; ``ask`` evaluates JavaScript and returns its value. Messages are JSON, ended by a zero
    byte, on the file descriptors 3 and 4 of the browser."""

    def __init__(self, file: Path, folder: Path, width: int = 1280) -> None:
        into, self.out = os.pipe()
        self.back, out_of = os.pipe()
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder}",
            "--remote-debugging-pipe",
        ]
        moved = f'exec 3<&{into} 4>&{out_of}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", moved, "bash", str(CHROMIUM), *arguments, f"--window-size={width},900", "about:blank"],
            pass_fds=(into, out_of), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(into)
        os.close(out_of)
        self.numbers, self.rest, self.session = count(1), b"", None
        target = self.tell("Target.createTarget", url=file.as_uri())["targetId"]
        self.session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        while not self.ask('location.protocol === "file:" && document.readyState === "complete"'):
            pass

    def tell(self, method: str, **parameters: Any) -> Any:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                part = os.read(self.back, 1 << 16)
                if not part:
                    raise EOFError("the browser has ended")
                self.rest += part
            text, self.rest = self.rest.split(b"\0", 1)
            found = json.loads(text)
            if found.get("id") == number:
                if "error" in found:
                    raise RuntimeError(found["error"]["message"])
                return found["result"]

    def ask(self, script: str) -> Any:
        found = self.tell("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def picture(self, file: Path) -> None:
        import base64

        file.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.back)
