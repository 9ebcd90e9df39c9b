"""Checks the public URL as a browser uses it: TLS, Upgrade, the path, Origin, forwarded addresses, delays, and silent connections."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

from towerws.core.client_address import forwarded_nodes
from towerws.core.handshake_probes import PROBE_HEADER
from towerws.core.http_head import CREDENTIAL_REFUSED, NO_CREDENTIAL, NO_UPGRADE
from towerws.core.origins import HOST_REFUSED, ORIGIN_REFUSED
from towerws.core.settings import Settings
from towerws.core.wire import SUBPROTOCOL
from towerws.doctor.daemon import AdminPort
from towerws.doctor.examination import Area, Doing, Finding, Step
from towerws.doctor.network import STEP_S, Unreachable, certificate_finding, shown
from towerws.doctor.websocket import Ended, Handshake, handshake

FOREIGN_ORIGIN = "https://towerws-doctor.invalid"
"""No page has this origin (RFC 6761 section 6.4)."""

FORGED_ADDRESS = "192.0.2.1"
"""An address for documentation (RFC 5737), which no client has."""

HANDSHAKE_S = 4 * STEP_S
"""Longest time of a handshake: connecting, TLS, the request, the answer."""

ECHOES = 5
SLOW_ECHO_S = 1.0
ECHO_S = 5.0
"""How many pings are timed, after what time an answer is a warning, and how long the check waits for one."""

ATTEMPTS = 5
"""Most handshakes until one reaches the daemon of the admin port. A proxy may spread them over several daemons."""

_NGINX_UPGRADE = 'nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"'
_NGINX_HOST = "nginx: proxy_set_header Host $http_host"
_NGINX_FORWARDED = "nginx: proxy_set_header X-Forwarded-For $remote_addr"
_NGINX_LOCATION = "nginx: location ~ /websocket/?$ (deploy/nginx/towerws_location.conf)"


@dataclass(frozen=True, slots=True)
class PublicUrl:
    """The options of the check: the URL, a file with authorities, a bearer token, and for how many seconds to hold a silent connection."""

    url: SplitResult
    ca: str
    token: str | None
    idle_s: float


def check_public(public: PublicUrl, settings: Settings, admin: AdminPort) -> Iterator[Step]:
    """Check the way from a browser to the daemon, through all proxies."""
    return _Examination(public, settings, admin).run()


class _AdminUnreachable(Unreachable):
    """The admin port can't be asked. Any other `Unreachable` is about the public URL."""


class _Examination:
    """The checks of one public URL. `_admin` tells how a handshake arrived at the daemon."""

    def __init__(self, public: PublicUrl, settings: Settings, admin: AdminPort) -> None:
        self._area = Area("public")
        self._public = public
        self._settings = settings
        self._admin = admin
        self._text = public.url.geturl()

    def run(self) -> Iterator[Step]:
        """Yield the findings."""
        area = self._area
        yield Doing(f"connecting to {self._text}", HANDSHAKE_S)
        try:
            first = self._ask()
        except Unreachable as error:
            yield area.problem("connection", f"{self._text}: {error}", error.change)
            return
        if first.days is not None:
            yield certificate_finding(area, f"the certificate of {self._public.url.hostname}", first.days)
        elif self._public.url.hostname not in {"127.0.0.1", "localhost", "::1"}:
            yield area.warning("certificate", f"{self._text} has no TLS: anybody on the way reads events and credentials", "https://")
        upgraded = self._upgrade(first)
        first.close()
        yield upgraded
        if not _passes(first):
            yield area.unknown("path", "nothing more can be asked before the handshake works")
            return
        try:
            yield from self._slash(first)
            yield from self._origins()
            yield from self._foreign()
            yield from self._forwarded()
            if first.status == 101:
                yield from self._delays()
                yield from self._idle()
            else:
                for check in ("buffering", "idle"):
                    yield area.unknown(check, "the daemon opens no connection without a valid credential", "give one with --token @FILE")
        except Unreachable as error:
            yield area.problem("connection", f"{self._text}: {error}", error.change)

    def _ask(self, headers: Mapping[str, str] | None = None, path: str | None = None) -> Handshake:
        token = self._public.token
        credential = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = self._public.url if path is None else self._public.url._replace(path=path)
        return handshake(url, {**credential, **(headers or {})}, self._public.ca)

    # the handshake

    def _upgrade(self, answer: Handshake) -> Finding:
        area, status, said = self._area, answer.status, shown(answer.text)
        if status == 101 and answer.genuine:
            if answer.headers.get("sec-websocket-protocol") != SUBPROTOCOL:
                change = "let the URL lead to towerws, and pass Sec-WebSocket-Protocol on"
                return area.problem("upgrade", f"{self._text} opens a websocket that does not speak {SUBPROTOCOL}", change)
            return area.ok("upgrade", f"the websocket opens, within {answer.seconds * 1000:.0f} ms")
        if status == 101:
            return area.problem("upgrade", "the answer 101 has a wrong Sec-WebSocket-Accept", "let the URL lead to towerws, past any cache")
        if status == 426 or NO_UPGRADE in answer.text or "connection header does not say Upgrade" in answer.text:
            return area.problem("upgrade", f"a proxy takes the Upgrade and Connection headers away ({status})", _NGINX_UPGRADE)
        if status == 505:
            return area.problem("upgrade", "a proxy speaks HTTP/1.0 to towerws (505)", "nginx: proxy_http_version 1.1")
        if status in {401, 403}:
            return self._refusal(answer)
        if status in {301, 302, 307, 308}:
            where = shown(answer.headers.get("location", ""))
            return area.problem(
                "upgrade", f"{self._text} redirects ({status}) to {where}: browsers don't follow that", "give that URL, with --url"
            )
        if status in {502, 504}:
            change = "start towerws, and let the proxy's address for it be that of listen; its error log says more"
            return area.problem("upgrade", f"the proxy gets no answer from towerws ({status})", change)
        if status == 503:
            return area.problem("upgrade", f"busy or limited (503): {said}", "see the log of towerws, and the limits of the proxy")
        return area.problem(
            "upgrade", f"{self._text} answers {status}: {said or 'without a text'}", f"let the path lead to towerws; {_NGINX_LOCATION}"
        )

    def _refusal(self, answer: Handshake) -> Finding:
        """Return the finding about 401 or 403. Only a missing credential that the configuration asks for is in order."""
        area, status, said = self._area, answer.status, shown(answer.text)
        if HOST_REFUSED in answer.text:
            text = f"towerws refuses the Host that browsers ask for ({status}): it listens on loopback, and trusts no proxy"
            change = f'trusted_proxies = ["127.0.0.1"], the proxy\'s address; without a proxy: origins = ["{self._own_origin}"]'
            return area.problem("upgrade", text, change)
        if ORIGIN_REFUSED in answer.text:
            text = f"a proxy adds an Origin that the doctor did not send, and towerws refuses it ({status})"
            return area.problem("upgrade", text, "pass Origin on unchanged: remove any `proxy_set_header Origin`")
        if NO_CREDENTIAL in answer.text and self._public.token is not None:
            text = f"towerws gets no credential ({status}): a proxy takes the Authorization header away"
            return area.problem("upgrade", text, "pass Authorization on: remove any `proxy_set_header Authorization`")
        if NO_CREDENTIAL in answer.text and "open" in self._settings.auth:
            text = f"the daemon behind the URL wants a credential ({status}), though auth is open"
            return area.problem("upgrade", text, "give the URL of this daemon, or restart it with this configuration")
        if NO_CREDENTIAL in answer.text:
            return area.ok("upgrade", f"the handshake arrives: towerws refuses it without a credential ({status}), as it must")
        if CREDENTIAL_REFUSED in answer.text and self._public.token is None:
            text = f"a proxy adds a credential that the doctor did not send, and towerws refuses it ({status})"
            return area.problem("upgrade", text, "pass Authorization and Cookie on unchanged")
        if CREDENTIAL_REFUSED in answer.text:
            return area.problem(
                "upgrade", f"towerws refuses the credential ({status}): {said}", "check the token, and whether it has expired"
            )
        text = f"the proxy itself refuses the handshake ({status}): {said or 'without a text'}"
        return area.problem("upgrade", text, f"see the rules and the log of the proxy, and let the URL lead to towerws; {_NGINX_LOCATION}")

    def _slash(self, first: Handshake) -> Iterator[Step]:
        path = self._public.url.path
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        yield Doing(f"asking for {other}", HANDSHAKE_S)
        answer = self._ask(path=other)
        answer.close()
        if answer.status == first.status:
            yield self._area.ok("path", f"{other} and {path} lead to the same place")
        else:
            text = f"{other} is answered with {answer.status}, {path} with {first.status}: AWX's pages use both"
            yield self._area.problem("path", text, f"route both to towerws; {_NGINX_LOCATION}")

    # pages

    def _origins(self) -> Iterator[Step]:
        area = self._area
        own = self._own_origin
        yield Doing("asking as a page of this host", HANDSHAKE_S)
        answer = self._ask_as(own)
        if ORIGIN_REFUSED in answer.text:
            yield area.problem(
                "origin", f"a page of {own} itself is refused: towerws doesn't get the Host that browsers ask for", _NGINX_HOST
            )
        elif _passes(answer):
            yield area.ok("origin", f"a page of {own} may connect")
        else:
            yield self._no_answer("origin", own, answer)
        for origin in self._settings.access.origins:
            answer = self._ask_as(origin)
            if ORIGIN_REFUSED in answer.text:
                change = "restart the daemon with this configuration"
                yield area.problem("origin", f"a page of {shown(origin)} is refused, though origins lists it", change)
            elif _passes(answer):
                yield area.ok("origin", f"a page of {shown(origin)} may connect, as origins says")
            else:
                yield self._no_answer("origin", shown(origin), answer)

    def _foreign(self) -> Iterator[Step]:
        area = self._area
        yield Doing("asking as a page of another host", HANDSHAKE_S)
        answer = self._ask_as(FOREIGN_ORIGIN)
        if ORIGIN_REFUSED in answer.text:
            yield area.ok("foreign origin", "a page of another site is refused")
        elif not _passes(answer):
            if answer.status in {401, 403}:
                yield area.ok("foreign origin", f"a page of another site is refused, by the proxy itself ({answer.status})")
            else:
                yield self._no_answer("foreign origin", FOREIGN_ORIGIN, answer)
        elif not self._settings.access.check_origin:
            yield area.warning("foreign origin", "any site's page may connect in a user's name", "check_origin = true")
        else:
            text = (
                "a page of another site is not refused: the proxy removes or rewrites Origin, or the daemon runs with check_origin = false"
            )
            yield area.problem("foreign origin", text, "pass Origin on unchanged: remove any `proxy_set_header Origin`")

    @property
    def _own_origin(self) -> str:
        """The origin of a page that the public URL's host serves."""
        return f"{'https' if self._public.url.scheme == 'wss' else 'http'}://{self._public.url.netloc}"

    def _ask_as(self, origin: str) -> Handshake:
        """Ask as a page of this origin. The daemon checks the origin before the credential."""
        answer = self._ask({"Origin": origin})
        answer.close()
        return answer

    def _no_answer(self, check: str, origin: str, answer: Handshake) -> Finding:
        """Return the finding about an answer that says nothing about towerws and this origin."""
        said = f"({answer.status}): {shown(answer.text) or 'without a text'}"
        if answer.status in {401, 403}:
            return self._area.problem(
                check, f"the proxy itself refuses a page of {origin} {said}", "see the rules and the log of the proxy"
            )
        return self._area.unknown(check, f"a page of {origin} got another answer {said}", "run the doctor again")

    # addresses

    def _forwarded(self) -> Iterator[Step]:
        """Compare a handshake as it was sent with the handshake as it arrived, which the admin port tells (core/handshake_probes.py)."""
        area = self._area
        yield Doing("asking the admin port how a handshake arrived", 12 * STEP_S)
        try:
            seen = self._probe({})
            forged = self._probe({"X-Forwarded-For": FORGED_ADDRESS}) if seen is not None else None
        except _AdminUnreachable as error:
            why = f"only the daemon's admin port ({self._admin.address}) knows which address it counts, and it can't be asked: {error}"
            yield area.unknown("client address", why, error.change)
            return
        except (ValueError, LookupError, TypeError):
            yield area.unknown(
                "client address", "the admin port doesn't say how a handshake arrived: an older towerws?", "restart the daemon"
            )
            return
        if seen is None:
            why = f"none of {ATTEMPTS} handshakes reached the daemon with this admin port: another daemon is behind the URL"
            yield area.unknown("client address", why, "run the doctor on the machine of each daemon")
            return
        yield self._address(seen)
        if forged is not None and not seen.get("direct"):
            yield self._forgery(forged)

    def _probe(self, headers: Mapping[str, str]) -> dict[str, Any] | None:
        """Send handshakes until one reaches the daemon of the admin port. Returns how it arrived, None if none of them did."""
        name = secrets.token_hex(16)
        self._seen(name)
        for _ in range(ATTEMPTS):
            answer = self._ask({PROBE_HEADER: name, **headers})
            answer.close()
            if (seen := self._seen(name)) is not None:
                return {**seen, "direct": seen["peer_port"] == answer.local_port}
        return None

    def _seen(self, name: str) -> dict[str, Any] | None:
        try:
            _, body = self._admin.ask("/probe", json.dumps({"probe": name}).encode("ascii"))
        except Unreachable as error:
            raise _AdminUnreachable(str(error), error.change) from None
        seen = json.loads(body)["seen"]
        if seen is not None and not isinstance(seen, dict):
            raise ValueError("not an object")
        return seen

    def _address(self, seen: Mapping[str, Any]) -> Finding:
        area, check = self._area, "client address"
        peer, address, headers = shown(str(seen["peer"])), shown(str(seen["address"])), seen["headers"]
        arrived = forwarded_nodes(headers.get("x-forwarded-for"), headers.get("forwarded"))
        if seen["direct"]:
            return area.skipped(check, f"no proxy is between: towerws sees {address} itself")
        if not arrived:
            text = f"the proxy ({peer}) sends no X-Forwarded-For: all clients count as one address, under limits.per_address"
            change = _NGINX_FORWARDED if seen["trusted"] else f'{_NGINX_FORWARDED}; and trusted_proxies = ["{peer}"]'
            return area.problem(check, text, change)
        if not seen["trusted"]:
            text = f"X-Forwarded-For arrives from {peer}, which is not trusted: all clients count as {peer}"
            return area.problem(check, text, f'trusted_proxies = ["{peer}"]')
        return area.ok(check, f"X-Forwarded-For arrives and is trusted: towerws counts this machine as {address}")

    def _forgery(self, seen: Mapping[str, Any]) -> Finding:
        area, check = self._area, "forged address"
        arrived = str(seen["headers"].get("x-forwarded-for", ""))
        if seen["address"] != FORGED_ADDRESS:
            return area.ok(check, "an X-Forwarded-For that a client writes itself does not count")
        if "," in arrived:
            return area.unknown(check, "this machine is itself in trusted_proxies, so it may name any address", "run the doctor elsewhere")
        return area.problem(check, "a client that writes X-Forwarded-For itself can claim any address", f"overwrite it. {_NGINX_FORWARDED}")

    # an open connection

    def _delays(self) -> Iterator[Step]:
        """Time the answers to a few pings of the protocol. A proxy that buffers holds the answers back."""
        area = self._area
        yield Doing("timing answers", (ECHOES + 2) * ECHO_S)
        times: list[float] = []
        answer = self._ask()
        try:
            if answer.socket is None:
                yield area.unknown("buffering", f"the websocket did not open again ({answer.status})", "run the doctor again")
                return
            for number in range(ECHOES):
                began = time.monotonic()
                answer.socket.send({"ping": number})
                while (frame := answer.socket.receive(began + ECHO_S - time.monotonic())) is not None:
                    if frame.get("type") == "error":
                        yield self._refused_frame("buffering", frame)
                        return
                    if frame.get("type") == "pong":
                        break
                if frame is None:
                    text = f"an answer did not come within {ECHO_S:g} s: a proxy holds small frames back, or the daemon hangs"
                    yield area.problem("buffering", text, "nginx: proxy_buffering off; for other proxies, switch response buffering off")
                    return
                times.append(time.monotonic() - began)
        except Ended as error:
            yield area.problem("buffering", f"the connection ended: {shown(str(error))}", "see the logs of towerws and of the proxy")
            return
        finally:
            answer.close()
        text = f"{ECHOES} answers came within {max(times) * 1000:.0f} ms each"
        if max(times) > SLOW_ECHO_S:
            yield area.warning("buffering", text, "look for a proxy that buffers, or a network or a daemon that is slow")
        else:
            yield area.ok("buffering", f"{text}: nothing is held back")

    def _idle(self) -> Iterator[Step]:
        """Hold a connection that only answers pings, as an idle page does."""
        area, idle_s = self._area, self._public.idle_s
        if not idle_s:
            yield area.skipped("idle", "whether a silent connection stays is not asked with --idle 0")
            return
        yield Doing(f"holding a silent connection for {idle_s:g} s", idle_s + HANDSHAKE_S)
        answer = self._ask()
        began = time.monotonic()
        try:
            if answer.socket is None:
                yield area.unknown("idle", f"the websocket did not open again ({answer.status})", "run the doctor again")
                return
            answer.socket.send({"ping": None})  # a daemon that waits for a token answers this with an error at once
            while (left := began + idle_s - time.monotonic()) > 0:
                frame = answer.socket.receive(left)
                if frame is not None and frame.get("type") == "error":
                    yield self._refused_frame("idle", frame)
                    return
            yield area.ok("idle", f"a silent connection stays open for {idle_s:g} s, with {answer.socket.pings} pings of the daemon")
        except Ended as error:
            held = time.monotonic() - began
            ping_s = self._settings.websocket.ping_s
            text = f"a silent connection ended after {held:.1f} s: {shown(str(error))}"
            if error.code is None:
                change = f"raise the proxy's timeout (nginx: proxy_read_timeout 75s), or lower websocket.ping_s = {ping_s:g} below it"
            else:
                change = "towerws closed it: its log has the reason"
            yield area.problem("idle", text, change)
        finally:
            answer.close()

    def _refused_frame(self, check: str, frame: Mapping[str, Any]) -> Finding:
        return self._area.unknown(check, f"the daemon wants a token ({shown(str(frame.get('code')))})", "give one with --token @FILE")


def _passes(answer: Handshake) -> bool:
    """Whether the handshake gets as far as the daemon's check of the credential."""
    return answer.status == 101 or (answer.status in {401, 403} and (NO_CREDENTIAL in answer.text or CREDENTIAL_REFUSED in answer.text))
