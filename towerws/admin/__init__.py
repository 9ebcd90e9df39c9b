"""The admin port: health, readiness, figures, publishing, disconnecting and the console. Never public; loopback by default.

  GET  /            the console (console.py lists its other paths)
  GET  /live        the live page
  GET  /live/topics for the live page: the newest topics of the configured groups, and the position of the newest delivery
  GET  /healthz     200 while the event loop runs
  GET  /readyz      200 while the source consumes, otherwise 503 with the reason
  GET  /status      the figures
  GET  /metrics     the figures, for Prometheus
  POST /publish     202 when an event is published, or 200 with an answer for each line of a batch
  POST /disconnect  202 with the number of connections closed here; 503 if the other daemons don't know
  POST /restart     200 when a new process has all connections, 503 if that failed
  POST /probe       200 with how a handshake of `towerws doctor` arrived

Every answer is one JSON object, except the answer to a batch, the metrics, the pages and their files. An error is `{"error": …}`. Every
path that takes `GET` takes `HEAD`.

The port of `monitor` (`monitor_site`) has `/healthz`, `/readyz` and `/metrics` only, and may be public.
"""

from __future__ import annotations

from towerws.admin.console import ConsoleData, console_endpoints
from towerws.admin.health import monitor_site
from towerws.admin.metrics import MetricsPage
from towerws.admin.samples import Samples
from towerws.admin.site import AdminSite, PageContent, topics_of

__all__ = [
    "AdminSite",
    "ConsoleData",
    "MetricsPage",
    "PageContent",
    "Samples",
    "console_endpoints",
    "monitor_site",
    "topics_of",
]
