"""An MLLP listener beside the hub: each HL7 message of IHE PCD is a capture, durable before it is answered (docs/pump-formats.md §6).

AA says that the store has the message; AE that it has not, or not as a capture, and why. What cannot become a capture is put aside with
its bytes. A sender that gets no AA sends again, and the store knows what it has.
"""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from devices import pcd
from devices.contract import Capture
from devices.errors import InputError, LinkError, PumpledgerError
from ingest.hub import HL7_BYTES, hl7_captures
from ingest.store import Arrival, Store

_CHUNK = 1 << 16


@dataclass(slots=True, kw_only=True)
class Counters:
    """What the listener shows. `stored` counts AA: what was known already gets one too. `broken`: messages that did not come whole."""

    received: int = 0
    stored: int = 0
    refused: int = 0
    broken: int = 0
    trouble: str = ""

    def line(self) -> str:
        """All of it for people."""
        text = f"MLLP: received {self.received}, stored {self.stored}, refused {self.refused}, broken off {self.broken}"
        return f"{text} · {self.trouble}" if self.trouble else text


class Listener:
    """Takes messages over MLLP into the store until it is stopped; a context manager. `port` is the one it listens at."""

    def __init__(
        self,
        host: str,
        port: int,
        store_path: Path,
        *,
        message_bytes: int = HL7_BYTES,
        idle_s: float = 300.0,
        connections: int = 64,
        show: Callable[[str], None] = lambda _: None,
    ) -> None:
        """A message must be whole within `idle_s` of its first byte, and the next begin within as much; port 0: any that is free.

        `show` gets a line whenever something has come. Raises LinkError where it cannot listen there, StorageError.
        """
        self.counters = Counters()
        self._bytes, self._idle_s, self._show = message_bytes, idle_s, show
        self._room = threading.BoundedSemaphore(connections)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._store = Store(store_path)
        try:
            self._server = _Server((host, port), self)
        except OSError as error:
            self._store.close()
            raise LinkError(
                f"Nobody can listen at {host}:{port}.",
                why=f"The system says: {error.strerror or error}.",
                do="Name an address of this machine and a port that is free, such as --mllp 0.0.0.0:2575.",
                code="mllp_address",
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="mllp", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._store.close()

    def admit(self, connection: socket.socket) -> bool:
        """Whether there is room for one more connection."""
        if not self._room.acquire(blocking=False):
            return False
        with self._lock:
            self._open.add(connection)
        return True

    def leave(self, connection: socket.socket) -> None:
        """A connection that was admitted has ended."""
        with self._lock:
            self._open.discard(connection)
        self._room.release()

    def trouble(self, what: str) -> None:
        """Shows what went wrong."""
        self._tell(trouble=what)

    def converse(self, connection: socket.socket, sender: str) -> None:
        """Takes the messages of one connection until it ends, is idle, or sends what is no MLLP."""
        rest, since = b"", time.monotonic()
        while True:
            connection.settimeout(max(0.001, since + self._idle_s - time.monotonic()))
            try:
                came = connection.recv(_CHUNK)
            except TimeoutError:
                came = b""
            if not came:
                if rest:
                    self._tell(broken=1)
                return
            frames = pcd.unframed(rest + came)
            if frames.outside:
                self._put_aside(frames.outside, "It came outside of an MLLP frame.", sender)
            whole = [message for message in frames.messages if len(message) <= self._bytes]
            if whole:
                connection.sendall(b"".join(map(pcd.framed, self._answers(whole, sender))))
            too_long = [message for message in frames.messages if len(message) > self._bytes]
            too_long += [frames.rest[1:]] if len(frames.rest) > self._bytes else []
            for message in too_long:
                why = f"It has more than {self._bytes} bytes."
                self._put_aside(message, why, sender)
                connection.sendall(pcd.framed(pcd.answer(message, accepted=False, at=datetime.now(UTC), why=why)))
            if too_long or len(frames.outside) > self._bytes:
                return
            if frames.messages or not rest:
                since = time.monotonic()
            rest = frames.rest

    def _answers(self, messages: Sequence[bytes], sender: str) -> list[bytes]:
        """The answers to whole messages, once the store has them all."""
        now = datetime.now(UTC)
        arrival = Arrival(now, f"mllp:{sender}")
        captures: list[Capture] = []
        refused: dict[int, str] = {}
        try:
            for number, message in enumerate(messages):
                try:
                    captures += hl7_captures(message, now)
                except InputError as error:
                    refused[number] = str(error)
                    self._store.refuse(message, refused[number], arrival)
            self._store.append((capture, arrival) for capture in captures)
            trouble = next(iter(refused.values()), "")
        except PumpledgerError as error:
            refused = dict.fromkeys(range(len(messages)), str(error))
            trouble = str(error)
        self._tell(received=len(messages), stored=len(messages) - len(refused), refused=len(refused), trouble=trouble)
        return [
            pcd.answer(message, accepted=number not in refused, at=now, why=refused.get(number, ""))
            for number, message in enumerate(messages)
        ]

    def _put_aside(self, data: bytes, why: str, sender: str) -> None:
        try:
            self._store.refuse(data, why, Arrival(datetime.now(UTC), f"mllp:{sender}"))
        except PumpledgerError as error:
            why = str(error)
        self._tell(received=1, refused=1, trouble=why)

    def _tell(self, *, received: int = 0, stored: int = 0, refused: int = 0, broken: int = 0, trouble: str = "") -> None:
        with self._lock:
            self.counters.received += received
            self.counters.stored += stored
            self.counters.refused += refused
            self.counters.broken += broken
            self.counters.trouble = trouble
            self._show(self.counters.line())


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], listener: Listener) -> None:
        self.listener = listener
        super().__init__(address, _Handler)

    def verify_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> bool:
        """One connection too many is closed at once."""
        return isinstance(request, socket.socket) and self.listener.admit(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that breaks is the sender's: it sends again what has no answer. Anything else is shown."""
        if not isinstance(error := sys.exception(), OSError):
            self.listener.trouble(f"A connection ended with {type(error).__name__}: {error}.")


class _Handler(socketserver.BaseRequestHandler):
    server: _Server
    request: socket.socket

    def handle(self) -> None:
        self.server.listener.converse(self.request, str(self.client_address[0]))

    def finish(self) -> None:
        self.server.listener.leave(self.request)
