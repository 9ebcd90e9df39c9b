"""Builds the JavaScript client and its shared form as the daemon serves them: `python -m tests.kit.client_file`.

It writes `towerws/static/client.*`, and the hashes in the client's README.

The tools are those of tests/languages/node, as in the lock file. The first line names the hash of the source, so that a test without
Node notices a source that was changed without a build.
"""

from __future__ import annotations

import re
import subprocess
from base64 import b64encode
from hashlib import sha256, sha384
from pathlib import Path
from typing import Final

from tests.languages import Node
from towerws import __version__
from towerws.websocket.plain_http import HASH_DIGITS

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = ROOT / "clients" / "js"
STATIC: Final = ROOT / "towerws" / "static"


BUILT: Final = {"client": "towerws", "client-shared": "shared"}
"""The served name, and the name of its source."""


def first_line(source: str = "towerws") -> str:
    """The first line of the built file."""
    digest = sha256((SOURCE / f"{source}.js").read_bytes()).hexdigest()[:HASH_DIGITS]
    return f"// towerws {__version__} (MIT), built from clients/js/{source}.js with the SHA-256 {digest}\n"


def minified(source: str = "towerws") -> str:
    """A source, minified. Installs terser at the first call. Its import has the served name."""
    node = Node()
    node.prepare()
    terser = node.folder / "node_modules" / ".bin" / "terser"
    command = [str(terser), "--module", "--compress", "--mangle", "--", f"{source}.js"]
    built = subprocess.run(command, cwd=SOURCE, stdout=subprocess.PIPE, text=True, check=True, timeout=100).stdout
    return built.replace("./towerws.js", "./client.js")


def main() -> None:
    """Write the files."""
    for served, source in BUILT.items():
        (STATIC / f"{served}.js").write_text(first_line(source) + minified(source))
        (STATIC / f"{served}.d.ts").write_text((SOURCE / f"{source}.d.ts").read_text().replace("./towerws.js", "./client.js"))
    body = (STATIC / "client.js").read_bytes()
    readme = SOURCE / "README.md"
    text = re.sub(r"client-[0-9a-f]+\.js", f"client-{sha256(body).hexdigest()[:HASH_DIGITS]}.js", readme.read_text())
    shared = sha256((STATIC / "client-shared.js").read_bytes()).hexdigest()[:HASH_DIGITS]
    text = re.sub(r"client-shared-[0-9a-f]+\.js", f"client-shared-{shared}.js", text)
    readme.write_text(re.sub(r'sha384-[^"]+', f"sha384-{b64encode(sha384(body).digest()).decode()}", text))


if __name__ == "__main__":
    main()
