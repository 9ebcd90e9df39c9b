"""Asks the daemon's admin port, and this machine: configuration, certificates, descriptors, memory."""

from __future__ import annotations

import datetime as dt
import json
import re
import resource
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from towerws.commands.config import why_no_credential, why_no_methods
from towerws.config.addresses import certificate_path, parse_address
from towerws.config.exposure import exposure
from towerws.config.load import Loaded
from towerws.config.rules import advice
from towerws.core.settings import MIB
from towerws.doctor.examination import Area, Doing, Finding, Step
from towerws.doctor.network import STEP_S, Unreachable, certificate_finding, connect, fetch_from, reason, shown
from towerws.process import RESERVED_DESCRIPTORS, wanted_connections
from towerws.workers.worker import memory_limits, worker_count

BASE_BYTES = 66 * MIB
"""Resident memory of a daemon without clients and history (docs/capacity.md)."""

IDLE_BYTES, IDLE_TLS_BYTES = 4_400, 30_000
"""Memory of an idle connection, without TLS and with TLS that ends in the daemon (docs/operations.md, Limits)."""

PROCESSES = Path("/proc")


class AdminPort:
    """The daemon's admin port, at the configured address."""

    def __init__(self, admin: str) -> None:
        self.address = parse_address(admin)

    @property
    def why_not_asked(self) -> str | None:
        """Why the doctor can't connect to an address of this kind, or None."""
        address = self.address
        if address.text.startswith("unix:") or (address.text.startswith("tcp") and address.port):
            return None
        return f"the doctor can't connect to {address.text}: it asks tcp: and unix: addresses only"

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send a GET, or a POST of `body`. Returns the status and the body. Raises `Unreachable`."""
        address = self.address
        change = "start the daemon, or give its own --admin or --config"
        if (why := self.why_not_asked) is not None:
            raise Unreachable(why, "let admin be tcp:9051:interface=127.0.0.1")
        if address.kind == "unix":
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(STEP_S)
            try:
                connection.connect(address.path)
            except OSError as error:
                connection.close()
                raise Unreachable(reason(error), change) from None
        else:
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.interface, address.interface)  # noqa: S104
            try:
                connection = connect(host, address.port, tls=False)
            except Unreachable as error:
                raise Unreachable(str(error), change) from None
        answer = fetch_from(connection, f"http://localhost{path}", {}, body)
        return answer.status, answer.body


@dataclass(frozen=True, slots=True)
class _Process:
    """The daemon's process, by its own figures.

    With several workers, memory and connections are totals. `open_descriptors` is the highest number of a process, and `max_descriptors`
    the lowest limit.
    """

    max_descriptors: int
    open_descriptors: int
    max_connections: int
    resident_bytes: int
    pid: int | None
    """The process id, with several workers that of the parent. None: the daemon's version doesn't report it."""


def check_configuration(loaded: Loaded) -> Iterator[Step]:
    """Check the files that the configuration names on this machine: keys, certificates, and which users may read secrets."""
    area = Area("configuration")
    settings = loaded.settings
    yield Doing("reading files", 10)
    if (why := why_no_credential(loaded)) is not None:
        text, _, change = why.rpartition(": ")
        yield area.problem("credentials", text, change)
    elif (why := why_no_methods(settings)) is not None:
        yield area.problem("auth", why, "correct the option")
    else:
        yield area.ok("auth", f"the methods {', '.join(settings.auth)} can be used")
    for sentence in (*advice(settings), *exposure(loaded)):
        text, colon, change = sentence.rpartition(": ")
        yield area.warning("advice", text if colon else sentence, change if colon else "change the option")
    for key in ("listen", "admin", "monitor"):
        text = str(loaded.by_key[key].value)
        if text and (path := certificate_path(text)):
            yield from _own_certificates(area, key, Path(path))


def check_daemon(loaded: Loaded, admin: AdminPort) -> Iterator[Step]:
    """Check the running daemon through its admin port, and the machine against the configured bounds."""
    area = Area("daemon")
    yield Doing(f"asking the admin port {admin.address}", 4 * STEP_S)
    process: _Process | None = None
    try:
        status, body = admin.ask("/readyz")
        answer = json.loads(body)
        if status == 200:
            yield area.ok("ready", "the daemon gets events")
        else:
            yield area.problem(
                "ready", f"the daemon gets no events: {shown(str(answer.get('reason')))}", "see the findings about the broker"
            )
        if unproven := answer.get("unproven"):
            yield area.warning(
                "ready", f"the daemon can't prove everything: {shown(str(unproven))}", "grant the permission that this names"
            )
        figures = json.loads(admin.ask("/status")[1])
        workers = figures.get("workers") or []
        silent = [each for each in workers if each["status"] is None]
        for worker in silent:
            state = "gives no figures" if worker["pid"] else f"has no process: the last one {worker['last_end']}"
            why = worker["error"] or f"worker {worker['worker']} {state}"
            yield area.problem("workers", shown(str(why)), "its lines in the daemon's log say why")
        if workers and len(silent) == len(workers):
            yield area.problem("running", "the daemon runs, and none of its workers answers", "see the findings about its workers")
        else:
            process = _process(figures, admin.ask("/metrics")[1].decode("utf-8", "replace"))
            yield from _traffic(area, figures)
    except Unreachable as error:
        if admin.why_not_asked is not None:
            yield area.unknown("running", str(error), error.change)
        else:
            yield area.warning("running", f"no daemon answers on the admin port {admin.address}: {error}", error.change)
    except (ValueError, LookupError, TypeError, AttributeError):
        yield area.unknown("running", f"what answers on {admin.address} is not a towerws admin port", "give the daemon's --admin")
    yield _descriptors(area, loaded, process)
    yield _memory(area, loaded, process)


def _own_certificates(area: Area, key: str, path: Path) -> Iterator[Finding]:
    files = sorted(path.rglob("*.pem")) if path.is_dir() else [path]
    for file in files:
        try:
            pem = file.read_bytes()
            if path.is_dir() and b"-----BEGIN CERTIFICATE-----" not in pem:  # a key alone
                continue
            certificates = x509.load_pem_x509_certificates(pem)
        except (OSError, ValueError) as error:
            yield area.problem("certificate", f"{key}: {file}: {reason(error)}", f"correct the path in {key}, or the file's owner")
            continue
        ends = min(certificate.not_valid_after_utc for certificate in certificates)
        yield certificate_finding(area, f"the certificate of {key} ({file})", (ends - dt.datetime.now(dt.UTC)).total_seconds() / 86400)
    if not files:
        yield area.problem("certificate", f"{key}: {path} holds no certificate (*.pem)", f"correct the path in {key}")


def _traffic(area: Area, figures: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings about connections and their limits, from the daemon's own figures."""
    connections = figures["connections"]
    yield area.ok("running", f"towerws {figures['version']} serves {connections['present']} of at most {connections['max']} connections")
    if connections["present"] > 0.9 * connections["max"]:
        yield area.warning(
            "connections", f"{connections['present']} of {connections['max']} connections are open", "raise limits.connections"
        )
    for reason_, limit in (("address", "limits.per_address"), ("user", "limits.per_user"), ("half_open", "limits.half_open")):
        if count := connections["refused_for"].get(reason_):
            change = f"raise {limit}; if all clients have the proxy's address, set trusted_proxies"
            yield area.warning("refusals", f"{count} clients were refused because of {limit} since the start", change)


def _process(figures: Mapping[str, Any], metrics: str) -> _Process:
    def metric(name: str) -> list[int]:
        found = re.findall(rf'^{name}(?:\{{worker="[0-9]+"\}})? (\S+)$', metrics, re.MULTILINE)
        return [int(float(each)) for each in found]

    return _Process(
        max_descriptors=min(metric("process_max_fds"), default=0),
        open_descriptors=max(metric("process_open_fds"), default=0),
        max_connections=int(figures["connections"]["max"]),
        resident_bytes=sum(metric("process_resident_memory_bytes")),
        pid=figures.get("pid"),
    )


def _descriptors(area: Area, loaded: Loaded, process: _Process | None) -> Finding:
    wanted, asked = wanted_connections(loaded)
    if process is not None and process.max_descriptors:
        limit, whose = process.max_descriptors, "the daemon" if worker_count(loaded.settings) == 1 else "each worker"
    else:
        limit, whose = resource.getrlimit(resource.RLIMIT_NOFILE)[0], "this shell"
    room = limit - RESERVED_DESCRIPTORS
    text = f"{whose} may open {limit} files"
    if wanted > room:
        change = f"LimitNOFILE={wanted + RESERVED_DESCRIPTORS} in the unit, or a smaller limits.connections"
        return area.problem("descriptors", f"{text}: too few for {asked}", change)
    if process is None:
        return area.unknown("descriptors", f"{text}; the daemon's own limit is known only while it runs", "start the daemon")
    if room < 1000:
        return area.warning(
            "descriptors", f"{text}: room for {room} clients", "raise LimitNOFILE in the unit (systemd/towerws.service: 65536)"
        )
    return area.ok("descriptors", f"{text}, of which {process.open_descriptors} are open: room for {room} clients")


def _memory(area: Area, loaded: Loaded, process: _Process | None) -> Finding:
    settings = loaded.settings
    clients = settings.limits.connections or (process.max_connections if process is not None else 0)
    if not clients:
        return area.unknown("memory", "limits.connections is 0, so the bound is known only while the daemon runs", "start the daemon")
    each = IDLE_TLS_BYTES if settings.listen.startswith(("ssl:", "tls:")) else IDLE_BYTES
    each_process = BASE_BYTES + settings.history.max_bytes
    processes = worker_count(settings)
    idle = processes * each_process + clients * each
    worst = idle + clients * settings.websocket.backlog_bytes
    have = _machine_bytes(None if process is None else process.pid)
    text = f"{clients} clients take {_mib(idle)} with history full, and {_mib(worst)} if no one reads. Memory: {_mib(have)}"
    if process is not None and process.resident_bytes:
        text += f", now used: {_mib(process.resident_bytes)}"
    if idle > have:
        return area.problem("memory", text, "lower limits.connections or history.max_bytes, or give the daemon more memory")
    if worst > have:
        fits = max(1, int((have - processes * each_process) / (each + settings.websocket.backlog_bytes)))
        return area.warning("memory", text, f"limits.connections = {fits} always fits; or lower websocket.backlog_bytes")
    return area.ok("memory", text)


def _machine_bytes(pid: int | None) -> int:
    """Return the memory of this machine, or the limit of a control group if that is lower.

    The control group is the daemon's, if the process `pid` is a daemon on this machine, otherwise that of this process. A unit's
    `MemoryMax=` bounds the daemon's group, and not the shell in which the doctor runs.
    """
    total = re.search(r"^MemTotal: +(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    have = int(total[1]) * 1024 if total else 0
    process = PROCESSES / (str(pid) if pid is not None and _is_daemon(pid) else "self")
    return min([have, *memory_limits(process / "cgroup")])


def _is_daemon(pid: int) -> bool:
    """Whether the process with this id is a towerws daemon. The id of a daemon in another container means another process here, or none."""
    try:
        return b"towerws" in (PROCESSES / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False


def _mib(size: int) -> str:
    return f"{size / MIB / 1024:.1f} GiB" if size >= 1024 * MIB else f"{size / MIB:.0f} MiB"
