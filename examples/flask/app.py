"""A Flask application whose page follows jobs. It gives the page a token, and publishes an event on the daemon's admin port.

TOWERWS_URL, TOWERWS_ADMIN and TOWERWS_SECRET_FILE say where the daemon is, and which secret it shares with this application.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from urllib.request import Request, urlopen

import jwt
from flask import Flask, Response, render_template, send_from_directory

CLIENT = Path(__file__).parents[2] / "clients" / "js"

app = Flask(__name__)


@app.get("/")
def page() -> str:
    """The page."""
    return render_template("jobs.html", url=os.environ.get("TOWERWS_URL", "ws://localhost:8051/websocket/"))


@app.get("/towerws.js")
def client() -> Response:
    """The JavaScript client."""
    return send_from_directory(CLIENT, "towerws.js")


@app.post("/live-token")
def live_token() -> str:
    """A token for the page's user. An application with a login answers 401 to a client without one."""
    secret = Path(os.environ["TOWERWS_SECRET_FILE"]).read_text(encoding="utf-8").strip()
    return jwt.encode({"sub": "visitor", "exp": time.time() + 300, "groups": ["jobs.status_changed"]}, secret, "HS256")


@app.post("/jobs/<int:job>/<status>")
def change(job: int, status: str) -> tuple[str, int]:
    """Change a job, and tell every page. The id makes a repeated request one event."""
    event = {"topic": "jobs.status_changed", "payload": {"unified_job_id": job, "status": status}, "message_id": f"{job}-{status}"}
    admin = os.environ.get("TOWERWS_ADMIN", "http://127.0.0.1:9051")
    with urlopen(Request(f"{admin}/publish", json.dumps(event).encode(), {"Content-Type": "application/json"}), timeout=10) as answer:
        return answer.read().decode(), answer.status
