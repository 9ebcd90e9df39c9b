"""The JavaScript client as the daemon serves it: `client.js`, `client-shared.js`, their types, and each under a name with its hash."""

from __future__ import annotations

import gzip
from hashlib import sha256
from importlib.resources import files
from itertools import product

from towerws.core.plain_http import ClientFile

HASH_DIGITS = 12

_NAMES = ("client", "client-shared")
_TYPES = {"js": "text/javascript; charset=utf-8", "d.ts": "text/plain; charset=utf-8"}


def load_client_files() -> dict[str, ClientFile]:
    """Return the files by name. `client-HASH.js` may be cached for ever, `client.js` for some minutes."""
    found = {}
    for name, (end, content_type) in product(_NAMES, _TYPES.items()):
        body = files("towerws").joinpath("static", f"{name}.{end}").read_bytes()
        digest = sha256(body).hexdigest()[:HASH_DIGITS]
        packed = gzip.compress(body, mtime=0)
        found[f"{name}.{end}"] = ClientFile(content_type, body, packed, digest, forever=False)
        found[f"{name}-{digest}.{end}"] = ClientFile(content_type, body, packed, digest, forever=True)
    return found
