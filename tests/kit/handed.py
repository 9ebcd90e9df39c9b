"""A daemon whose process is replaced by hand-overs, and clients that must not notice."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import zlib
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import pika
from websockets.sync.client import connect

from tests.kit.daemon import DEADLINE_S, SUBPROTOCOL, Daemon

RESTART_S: Final = 120.0
"""Deadline of a hand-over: the daemon has `restart_s` (60 s) for the start, and moves connections then."""


class HandedDaemon(Daemon):
    """A `Daemon` that hands over. `serving` is the id of the process that serves now."""

    serving = 0

    @property
    def pid(self) -> int:
        """The process that serves now."""
        return self.serving or super().pid

    def restart(self, within_s: float = RESTART_S) -> tuple[int, Any]:
        """`POST /restart`. Returns the answer. After a success the old process has ended."""
        before = self.pid
        status, answer = self.ask("POST", "/restart", b"", within_s)
        if status == 200:
            wait_for_end(before)
            self.serving = answer["pid"]
        return status, answer

    def __exit__(self, *exc: object) -> None:
        if self.serving:
            with suppress(ProcessLookupError):
                os.kill(self.serving, signal.SIGTERM)
            wait_for_end(self.serving)
            assert self._process is not None
            self._process.wait(DEADLINE_S)
        super().__exit__(*exc)


def wait_for_end(pid: int) -> None:
    """Wait until this process has ended. A successor is no child of this one, and may stay a zombie."""
    give_up = time.monotonic() + DEADLINE_S
    while time.monotonic() < give_up:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.02)  # polled: only a parent can wait for a process
    raise AssertionError(f"process {pid} did not end within {DEADLINE_S} s")


class Numbers(threading.Thread):
    """Publishes `{"n": 0, "pad": …}`, `{"n": 1, …}`, … to a topic until `finish`, with confirms."""

    def __init__(self, url: str, exchange: str, topic: str, per_s: float = 300, pad: int = 300) -> None:
        super().__init__(daemon=True)
        self._url, self._exchange, self._topic, self._pause_s, self._pad = url, exchange, topic, 1 / per_s, "x" * pad
        self._finished = threading.Event()
        self.count = 0

    def run(self) -> None:
        """Publish."""
        connection = pika.BlockingConnection(pika.URLParameters(self._url))
        channel = connection.channel()
        channel.confirm_delivery()
        while not self._finished.wait(self._pause_s):
            channel.basic_publish(self._exchange, self._topic, json.dumps({"n": self.count, "pad": self._pad}).encode())
            self.count += 1
        channel.basic_publish(self._exchange, self._topic, b'{"n": -1}')
        connection.close()

    def finish(self) -> int:
        """Stop, with an event -1 at the end. Returns how many events were published before that."""
        self._finished.set()
        self.join(DEADLINE_S)
        return self.count


class Collector(threading.Thread):
    """A client of the library `websockets` that keeps the numbers it gets, and every other frame behind the first answer."""

    def __init__(self, url: str, topic: str, *, v1: bool, compressed: bool = False) -> None:
        super().__init__(daemon=True)
        group, _, event = topic.partition(".")
        self._leave = ExitStack()
        subprotocols = [SUBPROTOCOL] if v1 else None
        self._socket = self._leave.enter_context(
            connect(url, subprotocols=subprotocols, compression="deflate" if compressed else None, open_timeout=DEADLINE_S)
        )
        assert compressed == bool(self._socket.protocol.extensions)
        self._v1 = v1
        self.numbers: list[int] = []
        self.positions: list[str] = []
        self.others: list[Any] = []
        self.ended = ""
        self._socket.recv(DEADLINE_S)
        self._socket.send(json.dumps({"groups": {group: [event]}}))
        self._socket.recv(DEADLINE_S)
        self.start()

    def run(self) -> None:
        """Receive until the event -1."""
        try:
            while not self.numbers or self.numbers[-1] != -1:
                frame = json.loads(self._socket.recv(DEADLINE_S))
                payload = frame.get("payload") if self._v1 else frame
                if isinstance(payload, dict) and "n" in payload:
                    self.numbers.append(payload["n"])
                    if self._v1:
                        self.positions.append(frame["position"])
                else:
                    self.others.append(frame)
        except Exception as error:  # noqa: BLE001 - any end is the test's to judge
            self.ended = repr(error)

    def send(self, message: object) -> None:
        """Send one message."""
        self._socket.send(json.dumps(message))

    def result(self) -> tuple[list[int], list[Any], str]:
        """The numbers, the other frames, and how it ended, once the event -1 has come."""
        self.join(DEADLINE_S)
        self._leave.close()
        return self.numbers, self.others, self.ended


class RawClient:
    """A client that writes its own bytes, and reads the server's frames. `socket` is connected."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._came = b""

    def send(self, data: bytes) -> None:
        """Send these bytes."""
        self.socket.sendall(data)

    def read_response(self) -> None:
        """Read the response to the handshake, but no frame after it."""
        while b"\r\n\r\n" not in self._came:
            self._receive()
        self._came = self._came.partition(b"\r\n\r\n")[2]

    def read_until(self, text: bytes) -> list[bytes]:
        """Return the next text messages, up to the first one with this text in it. Pings are passed over."""
        messages: list[bytes] = []
        while not messages or text not in messages[-1]:
            first, payload = self._frame()
            if first & 15 == 1:
                messages.append(zlib.decompress(payload + b"\0\0\xff\xff", -zlib.MAX_WBITS) if first & 64 else payload)
            else:
                assert first & 15 == 9, f"a frame of type {first & 15}: {payload!r}"
        return messages

    def read_frame(self) -> tuple[int, bytes]:
        """Return the opcode and the payload of the next frame that is no ping."""
        while (frame := self._frame())[0] & 15 == 9:
            pass
        return frame[0] & 15, frame[1]

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _frame(self) -> tuple[int, bytes]:
        """The first byte and the payload of the next frame (RFC 6455 section 5.2)."""
        self._need(2)
        first, size = self._came[0], self._came[1]
        at = 2 + {126: 2, 127: 8}.get(size, 0)
        self._need(at)
        if at > 2:
            size = int.from_bytes(self._came[2:at], "big")
        self._need(at + size)
        payload, self._came = self._came[at : at + size], self._came[at + size :]
        return first, payload

    def _need(self, size: int) -> None:
        while len(self._came) < size:
            self._receive()

    def _receive(self) -> None:
        piece = self.socket.recv(1 << 16)
        assert piece, f"closed after {self._came[-200:]!r}"
        self._came += piece
