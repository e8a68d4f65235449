"""Who is still there: an idle connection from every process to process 0. When one breaks, its process is lost.

A collective operation waits for ever where a process has died; an operating system closes the connections of a process
that dies, and probes those to a machine that does. So every process hears of it, says so in one line, and ends with
exit code 75 ("try again", sysexits.h): the same command goes on from the last checkpoint. A process that ends for good,
as with bad input, says so before, and all end with its exit code.
"""

import contextlib
import os
import re
import secrets
import socket
import threading

from psaq_jax.errors import InputError, TryAgain
from psaq_jax.progress import say

LOST = TryAgain.code
SILENCE = 30  # seconds without an answer after which a machine counts as lost
PATIENCE = 60  # seconds to connect
DONE = "done\n"


class Listener:
    """Process 0's door, open while the others connect. `where`: what they need to know of it."""

    def __init__(self, host: str | None = None):
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self.socket = socket.create_server(("", 0), family=family, backlog=1024, dualstack_ipv6=both)
        self.secret = secrets.token_hex(16)
        self.where = f"{host or _own_address()} {self.socket.getsockname()[1]} {self.secret}"

    def accept(self, found: dict[int, socket.socket], others: int) -> None:
        """Adds {index: connection} of all other processes."""
        self.socket.settimeout(PATIENCE)
        while len(found) < others:
            connection, _ = self.socket.accept()
            connection.settimeout(PATIENCE)
            words = _line(connection).split()
            if len(words) == 2 and words[0] == self.secret and words[1].isdecimal():
                found[int(words[1])] = connection
            else:
                connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def _own_address() -> str:
    """The address that this machine sends from; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()


class Connection:
    """The open connections of this process: {index of the other: socket}."""

    def __init__(self, index: int, sockets: dict[int, socket.socket]):
        self.index, self.sockets = index, sockets
        self._done = {other: threading.Event() for other in sockets}
        for other, connection in sockets.items():
            _probe(connection)
            threading.Thread(target=self._watch, args=(other, connection), daemon=True).start()

    def finish(self) -> None:
        """Returns when all processes are done; it is process 0 that knows."""
        if self.index:
            self._tell(DONE)
        for done in self._done.values():
            done.wait()
        if not self.index:
            self._tell(DONE)

    def fail(self, code: int) -> None:
        """Tells the others that this process ends with that code, for a reason that will be there again."""
        self._tell(f"{self.index} {code}\n")

    def _watch(self, other: int, connection: socket.socket) -> None:
        said = _line(connection)
        if said == DONE:
            self._done[other].set()
            return
        told = re.fullmatch(r"(\d+) (\d+)\n", said)  # process 0 tells the others who and how
        lost, code = map(int, told.groups()) if told else (other, LOST)
        self._tell(f"{lost} {code}\n")
        advice = "; the same command on all machines goes on from the last checkpoint" * (code == LOST)
        say(f"error: process {lost} of this run ended early (its own log says why){advice}")
        os._exit(code)

    def _tell(self, line: str) -> None:
        for connection in self.sockets.values():
            with contextlib.suppress(OSError):
                connection.sendall(line.encode())


def connect(where: str, index: int, processes: int, listener: Listener | None) -> Connection:
    """The connections of process `index`: `listener` is process 0's, `where` its `Listener.where`."""
    host, port, secret = where.split()
    sockets = {}
    try:
        if listener:
            listener.accept(sockets, processes - 1)
        else:
            sockets[0] = socket.create_connection((host, int(port)), PATIENCE)
            sockets[0].sendall(f"{secret} {index}\n".encode())
        return Connection(index, sockets)
    except OSError as error:
        for connection in sockets.values():
            connection.close()
        other = index or min(set(range(1, processes)) - sockets.keys(), default=1)
        raise InputError(
            f"process {other} and process 0 at {host}:{port} cannot connect ({error}); "
            "let the machines of this run reach each other on all ports"
        ) from None


def _line(connection: socket.socket) -> str:
    """The next line that the other end sends, and no byte of the one after; empty where the connection breaks."""
    try:
        return connection.makefile("rb", buffering=0).readline(100).decode(errors="replace")
    except OSError:
        return ""


def _probe(connection: socket.socket) -> None:
    """Lets the operating system find out within `SILENCE` that the other machine is gone; waits without a limit."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": SILENCE * 1000}
    for name, value in options.items():  # Linux; elsewhere the system's own, slower probes
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
