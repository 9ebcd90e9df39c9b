"""A Django site whose page follows jobs. It gives the page a token, and publishes through the broker once a transaction is committed.

TOWERWS_URL, TOWERWS_BROKER and TOWERWS_SECRET_FILE say where daemon and broker are, and which secret the daemon shares with this site.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import jwt
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import FileResponse, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_POST

HERE = Path(__file__).parent
CLIENT = HERE.parents[1] / "clients" / "js" / "towerws.js"

settings.configure(
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.urandom(32).hex(),
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [HERE / "templates"]}],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)

from towerws_producer.django import emit_on_commit  # noqa: E402 - a project of your own has its settings before it imports


@ensure_csrf_cookie
def page(request: HttpRequest) -> HttpResponse:
    """The page."""
    return render(request, "jobs.html", {"url": os.environ.get("TOWERWS_URL", "ws://localhost:8051/websocket/")})


def client(request: HttpRequest) -> FileResponse:
    """The JavaScript client."""
    return FileResponse(CLIENT.open("rb"), content_type="text/javascript")


@require_POST
def live_token(request: HttpRequest) -> HttpResponse:
    """A token for the page's user. A site with a login takes `request.user`, and answers 401 to a client without one."""
    secret = Path(os.environ["TOWERWS_SECRET_FILE"]).read_text(encoding="utf-8").strip()
    return HttpResponse(jwt.encode({"sub": "visitor", "exp": time.time() + 300, "groups": ["jobs.status_changed"]}, secret, "HS256"))


@require_POST
def change(request: HttpRequest, job: int, status: str) -> HttpResponse:
    """Change a job, and tell every page."""
    emit_on_commit("jobs.status_changed", {"unified_job_id": job, "status": status})
    return HttpResponse(status=202)


urlpatterns = [
    path("", page),
    path("towerws.js", client),
    path("live-token", live_token),
    path("jobs/<int:job>/<str:status>", change),
]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
