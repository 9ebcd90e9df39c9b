"""Names of hosts that the daemon connects to.

Names in `/etc/hosts` and in Docker's DNS may break the rules of IDNA (RFC 5891): `rabbit_mq` has a `_`. Such a name can be resolved.
With TLS it can't be used, because certificates are compared by these rules.
"""

from __future__ import annotations

import ipaddress
import re

_can_be_resolved = re.compile(r"(?:[^.]{1,63}\.)*[^.]{1,63}\.?").fullmatch  # DNS allows a label 1 to 63 bytes
_label = r"(?!-|(?!xn)..--)[a-z0-9-]{1,63}(?<!-)"
_can_be_verified = re.compile(rf"(?:{_label}\.)*{_label}\.?", re.IGNORECASE).fullmatch


def check_host(host: str, *, tls: bool) -> None:
    """Raise `ValueError` with the broken rule if no connection to this name or IP address can be made. IPv6 is without its brackets."""
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError("the host's IPv6 address isn't one") from None
    elif not _can_be_resolved(host):
        raise ValueError("the host's name needs 1 to 63 characters between two dots")
    elif tls and not _can_be_verified(host):
        raise ValueError(
            "TLS can't check a certificate for a name with _ or a misplaced -: "
            "use a name that is in the host's certificate (in Docker, a network alias)"
        )
