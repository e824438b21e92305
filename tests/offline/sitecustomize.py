"""A machine without a network: with this folder in PYTHONPATH, Python reaches no address but those of this machine.

It goes on to every Python that is started from there: kernels, workers, their children. GKP_OFFLINE_LOG names a file that
gets a line for each attempt. (Connecting a datagram socket sends nothing: some programs learn their own address so.)
"""

import errno
import os
import socket

_HERE = {"", "localhost", "localhost.localdomain", "0.0.0.0", "::", "::1", socket.gethostname(), socket.getfqdn()}


def _check(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else str(host or "")
    if name in _HERE or name.startswith("127."):
        return
    if log := os.environ.get("GKP_OFFLINE_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
    raise OSError(errno.ENETUNREACH, f"no network in this test: {name}")


class _Socket(socket.socket):
    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and self.type == socket.SOCK_STREAM:
            _check(address[0])
        return super().connect(address)

    def connect_ex(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and self.type == socket.SOCK_STREAM:
            _check(address[0])
        return super().connect_ex(address)

    def sendto(self, data, *rest):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(rest[-1][0])
        return super().sendto(data, *rest)


def _guarded(resolve):
    def guarded(host, *rest, **options):
        _check(host)
        return resolve(host, *rest, **options)

    return guarded


socket.socket = _Socket  # type: ignore[misc]
for _name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    setattr(socket, _name, _guarded(getattr(socket, _name)))
