"""A relay of TCP streams between ranks of `direct --host` that delays, cuts or corrupts them.

It listens on a port for each rank.  The ranks write down each other's true addresses before they connect.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from pathlib import Path

HANDSHAKE_BYTES = 200  # nothing is cut or corrupted before: that is a fault of its own, in the fuzz
READ_BYTES = 16 << 10


class Relay:
    """A context manager.  fault: "late", "cut", "corrupt" or "length"; each by the seed."""

    def __init__(self, fault: str, seed: int, size: int, folder: Path) -> None:
        self._fault, self._seed, self._folder = fault, seed, folder
        self._listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(size)]
        self.ports = [listener.getsockname()[1] for listener in self._listeners]
        self.injected = 0
        self._connections = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Relay:
        for rank, listener in enumerate(self._listeners):
            threading.Thread(target=self._accept, args=(rank, listener), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, rank: int, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(rank, client), daemon=True).start()

    def _serve(self, rank: int, client: socket.socket) -> None:
        host, _, port = (self._folder / "addresses").read_text().split()[rank].rpartition(":")
        with self._lock:
            number = self._connections
            self._connections += 1
        chance = random.Random(f"{self._seed}/{number}")
        try:
            server = socket.create_connection((host, int(port)))
        except OSError:
            client.close()
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=self._pass, args=(server, client, None), daemon=True)
        back.start()
        self._pass(client, server, chance)

    def _pass(
        self, source: socket.socket, sink: socket.socket, chance: random.Random | None
    ) -> None:
        """Bytes one way, until the end; faults by `chance`."""
        passed = 0
        # the fault strikes once the connection has carried so many bytes
        limit = HANDSHAKE_BYTES + (chance.randrange(20_000) if chance else 0)
        try:
            while data := source.recv(READ_BYTES):
                passed += len(data)
                if chance is not None and passed > limit:
                    if self._fault == "late":
                        self._strike()
                        time.sleep(chance.uniform(0, 0.1))
                        limit = passed + chance.randrange(200_000)
                    elif self._fault == "cut":
                        self._strike()
                        sink.sendall(data[: chance.randrange(len(data) + 1)])
                        return
                    elif self._fault == "corrupt":
                        self._strike()
                        changed = bytearray(data)
                        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                        data = bytes(changed)
                        limit = 1 << 60
                    elif self._fault == "length":
                        self._strike()
                        data += (1 << chance.choice((30, 33, 36, 48, 63))).to_bytes(8, "little")
                        limit = 1 << 60
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for sock in (source, sink):
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            source.close()
            sink.close()

    def _strike(self) -> None:
        with self._lock:
            self.injected += 1
