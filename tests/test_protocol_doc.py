from __future__ import annotations

import json
import re
from pathlib import Path

from tests.kit.rows import each_row
from towerws.core.errors import CloseReason

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "protocol.md").read_text()
SAMPLES = json.loads((ROOT / "tests" / "data" / "protocol-samples.json").read_text())
CODE_BLOCKS = re.findall(r"^```json\n(.*?)\n```$", DOCUMENT, re.MULTILINE | re.DOTALL)


@each_row("sample", SAMPLES, ids=lambda sample: f"{sample['dialect']}-{sample['name']}")
def test_every_golden_sample_stands_in_the_document(sample: dict[str, str]) -> None:
    """Each sample stands there verbatim, as a code block: the text that readers copy is the text that the tests check."""
    assert sample["frame"] in CODE_BLOCKS


def test_every_code_block_is_a_golden_sample() -> None:
    """Each frame in the document is checked by a test."""
    assert [sample["frame"] for sample in SAMPLES] == CODE_BLOCKS


def test_every_error_code_stands_in_the_document() -> None:
    """Programs depend on the codes, so each code that the server may send is listed."""
    source = "".join(path.read_text() for path in (ROOT / "towerws").rglob("*.py"))
    codes = set(re.findall(r'(?:BadRequest|AmbiguousJson)\("(\w+)"', source))
    assert len(codes) > 10
    for code in sorted(codes):
        assert f"`{code}`" in DOCUMENT, code


def test_every_status_of_a_handshake_stands_in_the_document() -> None:
    """A client that is refused finds its status, and what it did."""
    source = "".join((ROOT / "towerws" / name).read_text() for name in ("core/http_head.py", "websocket/handshake.py"))
    statuses = set(re.findall(r"HandshakeError\((\d+)", source))
    assert len(statuses) > 5
    table = DOCUMENT.split("\n## Connecting\n")[1].split("\n## ")[0]
    assert statuses <= set(re.findall(r"^\| (\d{3}) \|", table, re.MULTILINE))


@each_row("reason", CloseReason)
def test_every_close_stands_in_the_document(reason: CloseReason) -> None:
    """Each close is listed with its code and, if the code has several meanings, with its word."""
    assert f"| {reason.value.code} |" in DOCUMENT
    if reason is not CloseReason.TOO_BIG:
        assert f"`{reason.value.reason}`" in DOCUMENT
