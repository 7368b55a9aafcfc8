"""A server on loopback that answers as a test says, such as a Ray cluster's jobs service does."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping

Serve = Callable[[Callable[[str], bytes]], str]


def answer(content: str, code: int = 200, more: str = "") -> bytes:
    """An answer over HTTP."""
    return (
        f"HTTP/1.1 {code} Said\r\nContent-Length: {len(content)}\r\nConnection: close\r\n{more}\r\n{content}"
    ).encode()


def serving() -> Iterator[Serve]:
    """Starts servers that answer each path as they are told, and ends them; a server's address."""
    sockets = []

    def loop(listening: socket.socket, said: Callable[[str], bytes]) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.sendall(said(asked_of(connection)))

    def start(said: Callable[[str], bytes]) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)
        threading.Thread(target=loop, args=(listening, said), daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for listening in sockets:
        # Closing alone does not end an accept that waits.
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def asked_of(connection: socket.socket) -> str:
    """The path that is asked for, behind the method unless that is GET; the whole request is read."""
    with connection.makefile("rb") as request:
        method, _, rest = request.readline().decode(errors="replace").partition(" ")
        length = 0
        for line in iter(request.readline, b""):
            if not line.strip():
                break
            name, _, value = line.decode().partition(":")
            length = int(value) if name.lower() == "content-length" else length
        request.read(length)
    path = rest.partition(" ")[0]
    return path if method == "GET" else f"{method} {path}"


def ray(paths: Mapping[str, object]) -> Callable[[str], bytes]:
    """A server of these documents by path, and 404 elsewhere."""
    return lambda path: answer(json.dumps(paths[path])) if path in paths else answer("nothing", 404)
