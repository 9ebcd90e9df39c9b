"""A dashboard in the terminal: the connection, how many jobs have each status, and the newest jobs. Ctrl-C ends it."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
from collections import Counter
from typing import Any

from towerws.client import ClientError, Event, Gap, StateChange, Subscribed, connect

COLORS = {"running": 36, "successful": 32, "failed": 31, "error": 31, "canceled": 33}
KEPT = 1000
"""Jobs that are remembered. The oldest is forgotten first."""
TEXT_MAX, NOTICE_MAX = 40, 300
"""Characters of a job's number or status, and of a notice."""
DRAW_S = 0.1
"""Seconds between two pictures at least."""

OPEN, CLOSE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
"""The terminal's second screen, without a cursor and without line breaks of its own, and back."""


def clean(value: Any, most: int = TEXT_MAX) -> str:
    """A value for the terminal: short, and without control characters, which could change the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value)[:most])


class Dashboard:
    """What is shown."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.events = 0
        self.state = "connecting"
        self.notice = ""
        self.changed = asyncio.Event()

    def on_event(self, event: Event) -> None:
        """Move the job to the top, with its new status."""
        payload = event.payload or {}
        job = clean(payload.get("unified_job_id", "?"))
        self.jobs.pop(job, None)
        self.jobs[job] = clean(payload.get("status", "?"))
        if len(self.jobs) > KEPT:
            del self.jobs[next(iter(self.jobs))]
        self.events += 1
        self.changed.set()

    def on_missed(self, notice: Subscribed | Gap) -> None:
        """Events were missed, so the statuses may be old. A program with an API fetches them here."""
        self.jobs.clear()
        self.notice = f"{notice.type}: some events were missed"
        self.changed.set()

    def on_recovered(self, notice: Subscribed) -> None:
        """Nothing was missed."""
        self.notice = "reconnected: nothing was missed"
        self.changed.set()

    def on_state(self, change: StateChange) -> None:
        """The connection changed."""
        self.state = change.state
        self.changed.set()

    def on_error(self, error: ClientError) -> None:
        """Something went wrong."""
        self.notice = clean(error, NOTICE_MAX)
        self.changed.set()

    def picture(self, columns: int, rows: int) -> str:
        """The screen, in at most so many columns and rows."""
        counts = "  ".join(f"{status} {count}" for status, count in Counter(self.jobs.values()).most_common())
        lines = [f"Jobs   connection: {self.state}   events: {self.events}", counts, self.notice, ""]
        rows_left = max(0, rows - len(lines) - 1)
        texts = [(line[:columns], "") for line in lines]
        texts += [(f"{job:>12}  {status}"[:columns], status) for job, status in list(reversed(self.jobs.items()))[:rows_left]]
        return "\x1b[H" + "".join(f"\x1b[{COLORS.get(status, 0)}m{text}\x1b[0m\x1b[K\n" for text, status in texts) + "\x1b[J"


async def draw(board: Dashboard) -> None:
    """Draw each change, not more often than the eye can follow."""
    while True:
        await board.changed.wait()
        board.changed.clear()
        sys.stdout.write(board.picture(*shutil.get_terminal_size()))
        sys.stdout.flush()
        await asyncio.sleep(DRAW_S)


async def main() -> str:
    """Follow the jobs until Ctrl-C. Returns why the client stopped, or nothing."""
    parser = argparse.ArgumentParser(description="Follow jobs in the terminal. TOWERWS_TOKEN is the bearer token, if the daemon wants one.")
    parser.add_argument("--url", default="ws://127.0.0.1:8051/websocket/", help="the daemon's websocket (%(default)s)")
    url = parser.parse_args().url
    if not sys.stdout.isatty():
        parser.error("standard output is no terminal: `towerws tail --json` is for pipes and files")
    board = Dashboard()
    board.changed.set()
    reasons: list[str] = []

    def on_state(change: StateChange) -> None:
        board.on_state(change)
        if change.state == "closed" and change.reason is not None:
            reasons.append(clean(change.reason, NOTICE_MAX))

    try:
        live = connect(url, token=os.environ.get("TOWERWS_TOKEN"), onstate=on_state, onerror=board.on_error)
    except ValueError as error:
        parser.error(str(error))
    live.subscribe({"jobs": ["status_changed"]}, board.on_event, recovered=board.on_recovered, stale=board.on_missed, gap=board.on_missed)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, live.close)
    drawing, closed = asyncio.create_task(draw(board)), asyncio.create_task(live.wait_closed())
    sys.stdout.write(OPEN)
    try:
        await asyncio.wait({drawing, closed}, return_when=asyncio.FIRST_COMPLETED)
        if drawing.done():
            drawing.result()  # raises: the terminal is gone
    finally:
        drawing.cancel()
        sys.stdout.write(CLOSE)
        sys.stdout.flush()
    return "".join(reasons)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()) or 0)
