"""A server job started beside this process, asked over HTTP, and ended with it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 30.0


class Server:
    """Context manager around `jobs/serve.py`: up when entered, down when left."""

    def __init__(self, command: list[str], *, cwd: Path, port: int) -> None:
        self._command, self._cwd = command, cwd
        self._base = f"http://127.0.0.1:{port}"

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(self._command, cwd=self._cwd)
        deadline = time.monotonic() + _START_LIMIT_S
        while not self._healthy():
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {self._process.returncode} before it was up")
            if time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"the server was not up after {_START_LIMIT_S:.0f} s")
            time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, question: str, clip: Path) -> dict[str, Any]:
        """One question about a clip: answer, latent phases and seconds as the client sees them."""
        content = [
            {"type": "video_url", "video_url": {"url": clip.resolve().as_uri()}},
            {"type": "text", "text": question},
        ]
        body = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
        request = urllib.request.Request(
            f"{self._base}/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        started = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                choice = json.load(response)["choices"][0]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"the server answered {error.code}: {error.read().decode()}") from error
        return {
            "clip": clip.name,
            "question": question,
            "answer": choice["message"]["content"],
            "latent_phases": choice["latent_phases"],
            "latency_s": round(time.monotonic() - started, 3),
        }

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._base}/health", timeout=2) as response:
                return response.status == 200
        except OSError:
            return False
