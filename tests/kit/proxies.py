"""Private HAProxy and Caddy processes with the configurations in `deploy/`: a free port, a folder of their own, no file of the system.

They change what an operator would change: the addresses, the certificate and the log.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from private_rabbitmq import free_port, tied_to_us

from tests.kit.daemon import DEADLINE_S, Daemon
from tests.kit.nginx import adapted

DEPLOY = Path(__file__).parents[2] / "deploy"


def found(program: str) -> str | None:
    """The path of a program, None if it is not installed. Debian has HAProxy in root's PATH only."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Proxy:
    """A proxy in front of a daemon. It ends with the test's process, however that ends."""

    program: str
    gateway_error: int
    """Its status for a server that is down."""

    def __init__(self, folder: Path, daemon: Daemon, *, certificate: tuple[Path, Path] | None = None) -> None:
        self.port = free_port()
        self.tls = certificate is not None
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.configuration = folder / "configuration"
        self.configuration.write_text(self.adapt(daemon, certificate))

    def adapt(self, daemon: Daemon, certificate: tuple[Path, Path] | None) -> str:
        """The shipped configuration with an operator's changes."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Its command line."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}/websocket/"

    def logs(self) -> str:
        """All of its logs."""
        return "".join(path.read_text(errors="surrogateescape") for path in self.folder.glob("*.log"))

    def __enter__(self) -> Self:
        with (self.folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                tied_to_us(self.command(), "TERM"),
                cwd=self.folder,
                env={**os.environ, "HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        give_up = time.monotonic() + DEADLINE_S
        while True:
            assert self._process.poll() is None, self.logs()
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S).close()
            except OSError:
                assert time.monotonic() < give_up, self.logs()
                time.sleep(0.02)  # nothing announces the port, so it is polled
            else:
                return self

    def __exit__(self, *exc: object) -> None:
        """End it at once, and check that it warned of nothing in its configuration."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE_S)
        assert not re.search(r"\[(WARNING|ALERT)\].*config", self.logs()), self.logs()


class HAProxy(Proxy):
    """HAProxy."""

    program = "haproxy"
    gateway_error = 503

    def adapt(self, daemon: Daemon, certificate: tuple[Path, Path] | None) -> str:
        """Its log goes to standard output."""
        bind = f"bind 127.0.0.1:{self.port}"
        if certificate is not None:
            pem = self.folder / "tower.pem"
            pem.write_bytes(b"".join(path.read_bytes() for path in certificate))
            bind += f" ssl crt {pem} alpn http/1.1"
        text = adapted(
            (DEPLOY / "haproxy" / "towerws.cfg").read_text(),
            ("bind :443 ssl crt /etc/haproxy/tower.pem alpn http/1.1", bind),
            ("server towerws1 127.0.0.1:8051 check port 9051", f"server towerws1 127.0.0.1:{daemon.port} check port {daemon.admin_port}"),
            ("server awx1 127.0.0.1:8052", "server awx1 127.0.0.1:9"),
        )
        return f"global\n    log stdout format raw local0\n    maxconn 4000\n\n{text}"

    def command(self) -> list[str]:
        """In the foreground."""
        return [found(self.program) or "", "-db", "-f", str(self.configuration)]


class Caddy(Proxy):
    """Caddy."""

    program = "caddy"
    gateway_error = 502

    def adapt(self, daemon: Daemon, certificate: tuple[Path, Path] | None) -> str:
        """Without its admin port, which is one for the whole machine."""
        tls = "" if certificate is None else f"tls {certificate[0]} {certificate[1]}"
        scheme = "http" if certificate is None else "https"
        text = adapted(
            (DEPLOY / "caddy" / "Caddyfile").read_text(),
            ("tower.example.com {", f"{scheme}://:{self.port} {{\n\tbind 127.0.0.1"),
            ("tls /etc/caddy/tower.crt /etc/caddy/tower.key", tls),
            ("reverse_proxy 127.0.0.1:8051", f"reverse_proxy 127.0.0.1:{daemon.port}"),
            ("health_port 9051", f"health_port {daemon.admin_port}"),
            ("reverse_proxy 127.0.0.1:8052", "reverse_proxy 127.0.0.1:9"),
            ("/var/log/caddy/tower.log", str(self.folder / "tower.log")),
        )
        return adapted(text, ("\tlog default {\n", "\tadmin off\n\tauto_https disable_redirects\n\tlog default {\n"))

    def command(self) -> list[str]:
        """In the foreground."""
        return [found(self.program) or "", "run", "--adapter", "caddyfile", "--config", str(self.configuration)]
