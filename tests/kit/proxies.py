"""Private HAProxy and Caddy processes with the configurations in `deploy/`: a free port, a folder of their own, no file of the system.

They change what an operator would change: the addresses, the certificate and the log.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tests.kit.daemon import Daemon
from tests.kit.proxy_process import ProxyProcess, adapted

DEPLOY = Path(__file__).parents[2] / "deploy"


def found(program: str) -> str | None:
    """The path of a program, None if it is not installed. Debian has HAProxy in root's PATH only."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Proxy(ProxyProcess):
    """A proxy in front of a daemon and of AWX's port `awx`, with the configuration in `deploy/`."""

    program: str
    gateway_error: int
    """Its status for a server that is down."""

    def __init__(self, folder: Path, daemon: Daemon, *, certificate: tuple[Path, Path] | None = None, awx: int = 9) -> None:
        super().__init__(folder, tls=certificate is not None)
        self.awx = awx
        self.configuration = folder / "configuration"
        self.configuration.write_text(self.adapt(daemon, certificate))

    def adapt(self, daemon: Daemon, certificate: tuple[Path, Path] | None) -> str:
        """The shipped configuration with an operator's changes."""
        raise NotImplementedError

    def check_logs(self) -> None:
        """It warned of nothing in its configuration."""
        for text in self.logs().values():
            assert not re.search(r"\[(WARNING|ALERT)\].*config", text), text


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
            ("server awx1 127.0.0.1:8052", f"server awx1 127.0.0.1:{self.awx}"),
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
            ("reverse_proxy 127.0.0.1:8052", f"reverse_proxy 127.0.0.1:{self.awx}"),
            ("/var/log/caddy/tower.log", str(self.folder / "tower.log")),
        )
        return adapted(text, ("\tlog default {\n", "\tadmin off\n\tauto_https disable_redirects\n\tlog default {\n"))

    def command(self) -> list[str]:
        """In the foreground."""
        return [found(self.program) or "", "run", "--adapter", "caddyfile", "--config", str(self.configuration)]
