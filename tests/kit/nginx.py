"""A private nginx with the configuration in `deploy/nginx`: a free port, its own folder, and no file of the system.

It changes what an operator would change: the address of towerws, the logs, and the server's addresses and certificate.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

from tests.kit.proxy_process import ProxyProcess, adapted

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


def directive(text: str, name: str) -> str:
    """The value of the only directive with this name in a configuration, without comments."""
    (value,) = re.findall(rf"^\s*{name}\s+([^;]+);", text, re.MULTILINE)
    return str(value)


def shipped(name: str) -> str:
    """A file of `deploy/nginx`."""
    return (SHIPPED / name).read_text()


class Nginx(ProxyProcess):
    """nginx in front of `upstream` (`127.0.0.1:8051` or `unix:/…`) and of AWX's port `awx`. With `certificate` its server speaks TLS.

    `more` goes into `http`. `errors` is the lowest level of the location's error log. SIGTERM ends it at once: its workers drop their
    connections.
    """

    ended_by = signal.SIGTERM

    def __init__(
        self,
        folder: Path,
        upstream: str,
        *,
        certificate: tuple[Path, Path] | None = None,
        more: str = "",
        errors: str = "alert",
        awx: int = 9,
    ) -> None:
        super().__init__(folder, tls=certificate is not None)
        for name in ("conf.d", "snippets"):
            (folder / name).mkdir(parents=True)
        user = "user root;" if os.geteuid() == 0 else ""  # its worker must be able to enter the test's folder
        (folder / "nginx.conf").write_text(NGINX_CONF.format(folder=folder, user=user, more=more))
        self._ship("towerws.conf", "conf.d", ("\n    server 127.0.0.1:8051;", f"\n    server {upstream};"))
        logs = [(f"{name} /var/log/nginx/", f"{name} {folder}/") for name in ("access_log", "error_log")]
        self._ship("towerws_location.conf", "snippets", *logs, ("towerws-error.log alert;", f"towerws-error.log {errors};"))
        changes = [logs[0], ("127.0.0.1:8052", f"127.0.0.1:{awx}"), ("    listen [::]:443 ssl;\n", "")]
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
        (self.folder / target / name).write_text(adapted(shipped(name), *changes))

    def command(self) -> list[str]:
        """It writes to the folder only."""
        return [nginx_binary() or "", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-e", str(self.folder / "error.log")]

    def check_logs(self) -> None:
        """No error log has a warning or worse."""
        for name, text in self.logs().items():
            if name in ("error.log", "output.log", "towerws-error.log"):
                assert not re.search(r"\[(warn|alert|emerg|crit)\]", text), text
