"""A private nginx with the configuration in `deploy/nginx`: a free port, its own folder, and no file of the system.

It changes what an operator would change: the address of towerws, the logs, and the server's addresses and certificate.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from private_rabbitmq import free_port, tied_to_us

from tests.kit.daemon import DEADLINE_S

SHIPPED = Path(__file__).parents[2] / "deploy" / "nginx"

NGINX_CONF = """\
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
{user}
events {{ worker_connections 4096; }}
http {{
    client_body_temp_path {folder}/tmp-body;
    proxy_temp_path {folder}/tmp-proxy;
    fastcgi_temp_path {folder}/tmp-fastcgi;
    uwsgi_temp_path {folder}/tmp-uwsgi;
    scgi_temp_path {folder}/tmp-scgi;
    {more}
    include conf.d/*.conf;
}}
"""


def nginx_binary() -> str | None:
    """The path of nginx, None if it is not installed. Debian has it in root's PATH only. `PRIVATE_NGINX` names another."""
    return shutil.which(os.environ.get("PRIVATE_NGINX") or "nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def adapted(text: str, *changes: tuple[str, str]) -> str:
    """A shipped file with an operator's changes. Each text must occur once, otherwise the test would test something else."""
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the shipped file"
        text = text.replace(old, new)
    return text


def directive(text: str, name: str) -> str:
    """The value of the only directive with this name in a configuration, without comments."""
    (value,) = re.findall(rf"^\s*{name}\s+([^;]+);", text, re.MULTILINE)
    return str(value)


def shipped(name: str) -> str:
    """A file of `deploy/nginx`."""
    return (SHIPPED / name).read_text()


class Nginx:
    """nginx in front of `upstream` (`127.0.0.1:8051` or `unix:/…`). With `certificate` its server speaks TLS.

    `more` goes into `http`. `errors` is the lowest level of the location's error log. It ends with the test's process, however
    that ends.
    """

    def __init__(
        self, folder: Path, upstream: str, *, certificate: tuple[Path, Path] | None = None, more: str = "", errors: str = "alert"
    ) -> None:
        self.port = free_port()
        self.tls = certificate is not None
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("conf.d", "snippets"):
            (folder / name).mkdir(parents=True)
        user = "user root;" if os.geteuid() == 0 else ""  # its worker must be able to enter the test's folder
        (folder / "nginx.conf").write_text(NGINX_CONF.format(folder=folder, user=user, more=more))
        self._ship("towerws.conf", "conf.d", ("\n    server 127.0.0.1:8051;", f"\n    server {upstream};"))
        logs = [(f"{name} /var/log/nginx/", f"{name} {folder}/") for name in ("access_log", "error_log")]
        self._ship("towerws_location.conf", "snippets", *logs, ("towerws-error.log alert;", f"towerws-error.log {errors};"))
        changes = [logs[0], ("http://127.0.0.1:8052", "http://127.0.0.1:9"), ("    listen [::]:443 ssl;\n", "")]
        if certificate is None:
            changes += [
                (f"    {name} /etc/nginx/tls/tower.{end};\n", "")
                for name, end in (("ssl_certificate    ", "crt"), ("ssl_certificate_key", "key"))
            ]
            changes.append(("listen 443 ssl;", f"listen 127.0.0.1:{self.port};"))
        else:
            changes += [(f"/etc/nginx/tls/tower.{end}", str(path)) for path, end in zip(certificate, ("crt", "key"), strict=True)]
            changes.append(("listen 443 ssl;", f"listen 127.0.0.1:{self.port} ssl;"))
        self._ship("towerws_server.conf", "conf.d", *changes)

    def _ship(self, name: str, target: str, *changes: tuple[str, str]) -> None:
        (self._folder / target / name).write_text(adapted(shipped(name), *changes))

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}/websocket/"

    def logs(self) -> dict[str, str]:
        """The contents of all its logs, by file name."""
        return {path.name: path.read_text(errors="surrogateescape") for path in self._folder.glob("*.log")}

    def __enter__(self) -> Self:
        program = nginx_binary()
        assert program is not None
        with (self._folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                tied_to_us(
                    [program, "-p", str(self._folder), "-c", str(self._folder / "nginx.conf"), "-e", str(self._folder / "error.log")],
                    "TERM",
                ),
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
        """End it at once (SIGTERM: its workers drop their connections), and check that it logged no error."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(DEADLINE_S)
        for name, text in self.logs().items():
            if name in ("error.log", "output.log", "towerws-error.log"):
                assert not re.search(r"\[(warn|alert|emerg|crit)\]", text), text
