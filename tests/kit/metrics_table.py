"""The table in docs/metrics.md, made from a real `/metrics`. `python -m tests.kit.metrics_table` writes it.

The metrics of the process and of the interpreter come from prometheus_client. They are listed with its texts.
"""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from towerws.admin.metrics import ENTRIES, MetricsPage

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
BEGIN = "<!-- table of metrics: begin -->\n"
END = "<!-- table of metrics: end -->\n"


def table() -> str:
    """The table's lines, as the document must have them."""
    labels = {entry.name: entry.labels for entry in ENTRIES}
    text = MetricsPage(dict, lambda: 0.0).present().body.decode()
    head = "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n"
    rows = []
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found = labels.get(name, tuple(sorted({label for sample in family.samples for label in sample.labels})))
        words = ", ".join(f"`{label}`" for label in found) or "none"
        rows.append(f"| `{name}` | {family.type} | {words} | {family.documentation} |\n")
    return head + "".join(rows)


def split_document() -> tuple[str, str, str]:
    """The text before the table, the table, and the text after it."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    present, _, after = rest.partition(END)
    return before, present, after


if __name__ == "__main__":
    before, _, after = split_document()
    DOCUMENT.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
