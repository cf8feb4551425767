"""A real MQTT broker for tests, and the patience to wait for what it brings."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE_S = 30
CONNECT = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x05\x00\x01?"
"""An MQTT 3.1.1 CONNECT of a clean session. A broker that serves answers it, be it by refusing or hanging up."""


def soon(what: Callable[[], Any], why: str) -> Any:
    """Waits until `what` holds, and gives it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < deadline, f"waited in vain: {why}"
        time.sleep(0.01)
    return found


class Broker:
    """A mosquitto that keeps its sessions on disk."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.binary, self.folder = binary, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "passwords").touch()

    def start(self, *more: str) -> None:
        lines = [f"listener {self.port} 127.0.0.1", "persistence true", f"persistence_location {self.folder}/", *more]
        if os.geteuid() == 0:
            lines.append("user root")
        if not more:
            lines.append("allow_anonymous true")
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        self.process = subprocess.Popen([self.binary, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        soon(self._answers, "the broker starts")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
            self.process.wait(PATIENCE_S)
            self.process = None

    def _answers(self) -> bool:
        """Whether it serves clients: mosquitto 2.0 listens before it is ready, and forgets a SIGTERM that comes in between."""
        assert self.process
        assert self.process.poll() is None, "mosquitto ended"
        with socket.socket() as probe:
            probe.settimeout(PATIENCE_S)
            try:
                probe.connect(("127.0.0.1", self.port))
                probe.sendall(CONNECT)
                probe.recv(1)
            except ConnectionRefusedError:
                return False
            except ConnectionResetError:
                pass
        return True
