"""A producer's settings, checked before anything starts."""

import os
from typing import List, Mapping, Optional, Sequence, Union

from towerws_producer.address import Address, parse_addresses
from towerws_producer.errors import ConfigError

MIB = 1024 * 1024
MIN_BUFFER_BYTES = 64 * 1024
MAX_EXCHANGE_BYTES = 127


class Settings:
    """A producer's settings. The docstring of `Producer` has their meaning and defaults. Raises `ConfigError`."""

    def __init__(
        self,
        broker: Union[str, Sequence[str], None] = None,
        exchange: Optional[str] = None,
        declare: bool = True,
        mandatory: bool = True,
        tls_ca: Optional[str] = None,
        buffer_bytes: int = 16 * MIB,
        max_payload_bytes: int = 4 * MIB,
        connect_s: float = 1.0,
        attempt_s: float = 5.0,
        confirm_s: float = 10.0,
        blocked_s: float = 30.0,
        exit_s: float = 0.8,
        heartbeat_s: int = 10,
        environ: Optional[Mapping[str, str]] = None,
    ) -> None:
        environment = os.environ if environ is None else environ
        self.addresses: List[Address] = parse_addresses(environment.get("TOWERWS_BROKER", "") if broker is None else broker)
        self.exchange = environment.get("TOWERWS_EXCHANGE") or "towerws" if exchange is None else exchange
        if not 1 <= utf8_bytes(str(self.exchange)) <= MAX_EXCHANGE_BYTES:
            raise ConfigError(f"exchange: expected a name of 1 to {MAX_EXCHANGE_BYTES} bytes")
        self.declare = declare
        self.mandatory = mandatory
        self.tls_ca = environment.get("TOWERWS_TLS_CA") or None if tls_ca is None else tls_ca
        self.buffer_bytes = int(_positive("buffer_bytes", buffer_bytes, MIN_BUFFER_BYTES))
        self.max_payload_bytes = int(_positive("max_payload_bytes", max_payload_bytes, 2))
        self.connect_s = _positive("connect_s", connect_s)
        self.attempt_s = _positive("attempt_s", attempt_s)
        self.confirm_s = _positive("confirm_s", confirm_s)
        self.blocked_s = _positive("blocked_s", blocked_s)
        self.exit_s = _positive("exit_s", exit_s)
        self.heartbeat_s = int(_positive("heartbeat_s", heartbeat_s, 1))


def utf8_bytes(text: str) -> int:
    """Return the length of the text in UTF-8 bytes. 0 if the text has a lone surrogate, which Python makes of a byte that is no UTF-8."""
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return 0


def _positive(name: str, value: float, least: float = 0.001) -> float:
    number: object = value  # from a settings file it may have any type
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not least <= number < float("inf"):
        raise ConfigError(f"{name}: expected a number, at least {least}")
    return number
