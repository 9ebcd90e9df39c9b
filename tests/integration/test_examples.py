"""The pages of examples/ and the hooks of clients/react, in Chromium, through a restart of the daemon."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from private_rabbitmq import PrivateRabbit, free_port

from tests.integration.conftest import NO_LANGUAGE, require
from tests.kit.chromium import Chromium, Page
from tests.kit.daemon import DEADLINE_S, Daemon
from tests.languages import Node
from towerws import __version__

ROOT = Path(__file__).parents[2]
SECRET = "0123456789abcdef0123456789abcdef"


class Files:
    """Serves the repository, with the node packages of the tests where the examples look for theirs. `jobs` is what `/jobs` answers."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self, directory=str(ROOT)))
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def origin(self) -> str:
        """Its origin."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE_S)


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, files: Files, *args: Any, **more: Any) -> None:
        self._files = files
        super().__init__(*args, **more)

    def translate_path(self, path: str) -> str:
        modules = "/examples/node_modules/"
        return (
            str(Node().folder / "node_modules" / path.removeprefix(modules)) if path.startswith(modules) else super().translate_path(path)
        )

    def do_GET(self) -> None:
        if self.path != "/jobs":
            super().do_GET()
            return
        body = json.dumps(self._files.jobs).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """No log."""


@pytest.fixture(scope="module")
def files() -> Iterator[Files]:
    """One for the module."""
    require(NO_LANGUAGE, True if Node().here() else None)
    Node().prepare()
    with Files() as server:
        yield server


def until(page: Page, condition: str) -> None:
    """Wait until the condition is true. It is looked at after each change of the document."""
    page.run(f"""new Promise((done, fail) => {{
        const failed = setTimeout(() => fail(new Error(document.body.innerText)), {DEADLINE_S * 800:.0f});
        const observer = new MutationObserver(check);
        function check() {{ if ({condition}) {{ clearTimeout(failed); observer.disconnect(); done(); }} }}
        observer.observe(document, {{ subtree: true, childList: true, characterData: true }});
        check();
    }})""")


def shows(text: str) -> str:
    """The condition that a row of the page has exactly this text."""
    return f"[...document.querySelectorAll('#jobs li')].some((row) => row.textContent === {json.dumps(text)})"


def state(word: str) -> str:
    """The condition that the page shows this state of its connection."""
    return f"document.getElementById('state')?.textContent === {json.dumps(word)}"


def subscribed(daemon: Daemon, topics: int = 1) -> None:
    """Wait until clients have subscribed to so many topics. The daemon tells nobody, so its figures are asked."""
    give_up = time.monotonic() + DEADLINE_S
    while (found := daemon.get("/status")[1]["hub"]["subscriptions"]) != topics:
        assert time.monotonic() < give_up, found
        time.sleep(0.02)


def job(number: int, status: str) -> dict[str, Any]:
    """The payload of a job's event."""
    return {"unified_job_id": number, "status": status}


@pytest.mark.parametrize("example", ["html", "react", "vue"])
def test_a_page(example: str, files: Files, chromium: Chromium, tmp_path: Path) -> None:
    """It shows an event, says that the connection is lost, and shows events after a restart. A payload is never HTML."""
    with Daemon(tmp_path, "embedded:", "--origins", files.origin) as daemon:
        page = chromium.open(f"{files.origin}/examples/{example}/?url={quote(daemon.url)}")
        until(page, state("open"))
        subscribed(daemon)
        daemon.publish("jobs.status_changed", job(42, "running"))
        until(page, shows("42: running"))
        daemon.publish("jobs.status_changed", job(42, "<b>done</b>"))
        until(page, shows("42: <b>done</b>"))
        daemon.kill()
        until(page, state("waiting"))
        daemon.start()
        until(page, state("open"))
        subscribed(daemon)
        daemon.publish("jobs.status_changed", job(43, "running"))
        until(page, shows("43: running"))
        assert not page.run(shows("42: <b>done</b>")), "the page was told that its state is stale"
        page.go("about:blank")


@contextmanager
def application(folder: Path, broker: str, command: Callable[[int], list[str]], *more: str, **environ: str) -> Iterator[tuple[Daemon, str]]:
    """A daemon that takes tokens, and an application that shares its secret. Gives the application's origin, too."""
    secret = folder / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    port, log = free_port(), folder / "application.log"
    origin = f"http://127.0.0.1:{port}"
    flags = ("--jwt-algorithms", "HS256", "--jwt-secret-file", str(secret), "--origins", origin, *more)
    with Daemon(folder, broker, *flags, auth="jwt") as daemon, log.open("wb") as output:
        environ = {
            **os.environ,
            "TOWERWS_URL": daemon.url,
            "TOWERWS_ADMIN": f"http://127.0.0.1:{daemon.admin_port}",
            "TOWERWS_SECRET_FILE": str(secret),
            **environ,
        }
        served = subprocess.Popen([sys.executable, *command(port)], env=environ, stdout=output, stderr=subprocess.STDOUT)
        try:
            give_up = time.monotonic() + DEADLINE_S
            while not answers(origin):
                assert served.poll() is None, log.read_text()
                assert time.monotonic() < give_up
                time.sleep(0.05)
            yield daemon, origin
        finally:
            served.terminate()
            served.wait(DEADLINE_S)


def test_flask(chromium: Chromium, tmp_path: Path) -> None:
    """The application gives the page a token, and publishes. A repeated request is one event."""
    app = str(ROOT / "examples" / "flask" / "app.py")
    with application(tmp_path, "embedded:", lambda port: ["-m", "flask", "--app", app, "run", "--port", str(port)]) as (daemon, origin):
        page = chromium.open(f"{origin}/")
        until(page, state("open"))
        subscribed(daemon)
        for path in ("/jobs/42/running", "/jobs/42/running", "/jobs/42/done"):
            assert page.run(f"fetch('{path}', {{ method: 'POST' }}).then((answer) => answer.status)") == 202
        until(page, shows("42: done"))
        assert page.run("document.getElementById('jobs').innerText").split("\n") == ["42: running", "42: done"]
        page.go("about:blank")


def test_django(rabbit: PrivateRabbit, chromium: Chromium, tmp_path: Path) -> None:
    """The site gives the page a token, and publishes through the broker. Its forms' protection (CSRF) holds for both."""
    site = str(ROOT / "examples" / "django" / "jobs.py")
    environ = {"TOWERWS_BROKER": rabbit.url, "TOWERWS_EXCHANGE": "t.django", "PYTHONPATH": str(ROOT / "producer")}
    command = lambda port: [site, "runserver", "--noreload", str(port)]  # noqa: E731
    names = ("--exchange", "t.django", "--stream", "t.django.events")
    with application(tmp_path, rabbit.url, command, *names, **environ) as (daemon, origin):
        page = chromium.open(f"{origin}/")
        until(page, state("open"))
        subscribed(daemon)
        assert page.run("fetch('/live-token', { method: 'POST' }).then((answer) => answer.status)") == 403
        for status in ("running", "<b>done"):
            assert page.run(f"post('/jobs/42/{quote(status, safe='')}').then((answer) => answer.status)") == 202
        until(page, shows("42: <b>done"))
        assert page.run("document.getElementById('jobs').innerText").split("\n") == ["42: running", "42: <b>done"]
        page.go("about:blank")


def answers(origin: str) -> bool:
    """Whether the server listens yet."""
    try:
        with urlopen(origin, timeout=DEADLINE_S):
            return True
    except OSError:
        return False


def with_react(page: Page, files: Files, program: str) -> None:
    """Empty a page, and run a program in it that imports React and the hooks. `base` is where it may fetch from."""
    imports = {
        "react": f"{files.origin}/examples/react/react.js",
        "towerws": f"{files.origin}/clients/js/towerws.js",
        "towerws-react": f"{files.origin}/clients/react/towerws-react.js",
        "towerws-react/awx": f"{files.origin}/clients/react/awx.js",
    }
    page.run(f"""(async () => {{
        window.base = "{files.origin}";
        document.body.replaceChildren();
        const add = (more) => new Promise((done, fail) => {{
            const script = Object.assign(document.createElement("script"), {{ onload: done, onerror: fail }}, more);
            document.head.append(script);
            if (!more.src) done();
        }});
        await add({{ src: `${{base}}/examples/node_modules/react/umd/react.production.min.js` }});
        await add({{ src: `${{base}}/examples/node_modules/react-dom/umd/react-dom.production.min.js` }});
        await add({{ type: "importmap", textContent: {json.dumps(json.dumps({"imports": imports}))} }});
        await add({{ type: "module", textContent: {json.dumps(program)} }});
    }})()""")


AWX_PAGE = """
import { createElement as h, useEffect, useState } from "react";
import useWebsocket from "towerws-react/awx";

window.seen = [];
window.fetched = 0;
window.missed = 0;
window.addEventListener("towerws:missed", () => { window.missed += 1; });

function Header() {
  useWebsocket({ control: ["limit_reached_1"] });
  return h("h1", null, "AWX");
}

function Jobs() {
  const [jobs, setJobs] = useState({});
  const fetchJobs = async () => {
    const found = await (await fetch(`${base}/jobs`)).json();
    window.fetched += 1;
    setJobs(found);
  };
  const lastMessage = useWebsocket({ jobs: ["status_changed"] }, fetchJobs);
  useEffect(() => { fetchJobs(); }, []);
  useEffect(() => {
    if (!lastMessage) return;
    seen.push(lastMessage.n);
    setJobs((known) => ({ ...known, [lastMessage.unified_job_id]: lastMessage.status }));
  }, [lastMessage]);
  return h("ul", { id: "jobs" }, Object.entries(jobs).map(([id, status]) => h("li", { key: id }, `${id}: ${status}`)));
}

function Page() {
  const [shown, setShown] = useState(true);
  window.unmount = () => setShown(false);
  return shown ? [h(Header, { key: 1 }), h(Jobs, { key: 2 })] : null;
}

ReactDOM.createRoot(document.body).render(h(Page));
"""


def test_awx_list_page(files: Files, chromium: Chromium, tmp_path: Path) -> None:
    """With AWX's hook replaced, a list page renders every message, and keeps updating through restarts of the daemon.

    The hooks of the page share one connection. A change that was made while the daemon was away is fetched.
    """
    files.jobs = {"1": "pending"}
    with Daemon(tmp_path, "embedded:") as daemon:
        # The daemon answers 404 here. For the browser that is a page like any other, and of the websocket's origin, as AWX's pages are.
        page = chromium.open(daemon.url.replace("ws://", "http://").replace("/websocket/", "/page/"))
        with_react(page, files, AWX_PAGE)
        until(page, shows("1: pending"))
        numbers = 0
        for _ in range(3):
            subscribed(daemon, 2)
            assert daemon.get("/status")[1]["hub"]["subscribers"] == 1, "one connection for all hooks"
            lines = [
                json.dumps({"topic": "jobs.status_changed", "payload": {"n": number, **job(2, f"step {number}")}})
                for number in range(numbers, numbers + 50)
            ]
            numbers += 50
            for line in lines:
                assert daemon.ask("POST", "/publish", line.encode())[0] == 202
            until(page, shows(f"2: step {numbers - 1}"))
            fetched = page.run("fetched")
            daemon.kill()
            files.jobs = {"1": f"changed before {numbers}"}
            daemon.start()
            until(page, shows(f"1: changed before {numbers}"))
            assert page.run("fetched") == fetched + 1
        assert page.run("seen") == list(range(numbers)), "each message was rendered, in order"
        page.run("unmount()")
        subscribed(daemon, 0)
        page.go("about:blank")


def test_awx_list_page_that_connects_late(files: Files, chromium: Chromium, tmp_path: Path) -> None:
    """The page fetched its list before the daemon came. What changed in between is fetched, too, and the window gets the event."""
    files.jobs = {"1": "pending"}
    with Daemon(tmp_path, "embedded:") as daemon:
        page = chromium.open(daemon.url.replace("ws://", "http://").replace("/websocket/", "/page/"))
        daemon.kill()
        with_react(page, files, AWX_PAGE)
        until(page, shows("1: pending"))
        page.run("new Promise((done) => setTimeout(done, 1000))")  # the hook's SOON_MS
        files.jobs = {"1": "changed"}
        daemon.start()
        until(page, shows("1: changed"))
        assert page.run("[fetched, missed]") == [2, 1], "one for the hook with a function to fetch, one for that without"
        page.go("about:blank")


AWX_HOOKS = """
import { createElement as h, useEffect, useRef, useState } from "react";
import useWebsocket from "towerws-react/awx";

// What AWX's own hook does, after the contract: one socket for each hook, which sends its groups when it opens, and never reconnects.
function useAwxWebsocket(subscribeGroups) {
  const [lastMessage, setLastMessage] = useState(null);
  const ws = useRef(null);
  useEffect(() => {
    const { protocol, host, pathname } = window.location;
    ws.current = new WebSocket(`${protocol === "http:" ? "ws:" : "wss:"}//${host}${pathname}websocket/`);
    const connected = () => ws.current.send(JSON.stringify({ xrftoken: "", groups: { ...subscribeGroups, control: ["limit_reached_1"] } }));
    ws.current.onopen = connected;
    ws.current.onmessage = (event) => setLastMessage(JSON.parse(event.data));
    ws.current.onclose = () => { window.closes += 1; };
    return () => ws.current.close();
  }, []);
  return lastMessage;
}

window.closes = 0;

// As AWX's list of jobs: it fetches when it is shown, and for each change of a status.
function Jobs({ hook, name }) {
  const [jobs, setJobs] = useState({});
  const fetchJobs = async () => setJobs(await (await fetch(`${base}/jobs`)).json());
  const lastMessage = hook({ jobs: ["status_changed"] });
  useEffect(() => { fetchJobs(); }, []);
  useEffect(() => { if (lastMessage?.group_name === "jobs" && lastMessage.status) fetchJobs(); }, [lastMessage]);
  return Object.entries(jobs).map(([id, status]) => h("li", { key: id }, `${name} ${id}: ${status}`));
}

ReactDOM.createRoot(document.body).render(h("ul", { id: "jobs" },
  h(Jobs, { key: 1, hook: useAwxWebsocket, name: "AWX" }), h(Jobs, { key: 2, hook: useWebsocket, name: "ours" })));
"""


def test_awx_own_hook_stays_dead(files: Files, chromium: Chromium, tmp_path: Path) -> None:
    """A list with AWX's hook stops at the first restart of the daemon. The same list with ours, called with the same argument, goes on."""
    files.jobs = {"1": "pending"}
    with Daemon(tmp_path, "embedded:") as daemon:
        page = chromium.open(daemon.url.replace("ws://", "http://").replace("/websocket/", "/page/"))
        with_react(page, files, AWX_HOOKS)
        until(page, f"{shows('AWX 1: pending')} && {shows('ours 1: pending')}")
        subscribed(daemon, 3)  # AWX's hook has a control topic, too

        def change(status: str) -> None:
            files.jobs = {"1": status}
            daemon.publish("jobs.status_changed", {"group_name": "jobs", **job(1, status)})

        change("running")
        until(page, f"{shows('AWX 1: running')} && {shows('ours 1: running')}")
        for restart in range(3):
            daemon.kill()
            daemon.start()
            subscribed(daemon, 1)
            change(f"step {restart}")
            until(page, shows(f"ours 1: step {restart}"))
            assert page.run(shows("AWX 1: running")), "it never reconnects, and the page tells nobody"
        assert page.run("closes") == 1
        page.go("about:blank")


CHANGING_PAGE = """
import { createElement as h, useState } from "react";
import { useTowerws } from "towerws-react";

window.rendered = [];
const client = {
  subscribe(groups, { event }) {
    window.happens = (payload) => event({ payload });
    document.title = `job ${groups.job_events[0]}`;
    return { close() {} };
  },
};

function Job() {
  const [id, setId] = useState(1);
  const newest = useTowerws(client, { job_events: [id] });
  rendered.push(`job ${id}: ${newest?.payload ?? "nothing"}`);
  window.show = setId;
  return h("ul", { id: "jobs" }, h("li", null, rendered.at(-1)));
}

ReactDOM.createRoot(document.body).render(h(Job));
"""


def test_the_newest_event_is_of_the_present_groups(files: Files, chromium: Chromium) -> None:
    """After a change of the groups, no render shows an event of the groups before."""
    page = chromium.open(f"{files.origin}/clients/react/package.json")
    with_react(page, files, CHANGING_PAGE)
    until(page, "document.title === 'job 1'")
    page.run("happens('one')")
    until(page, shows("job 1: one"))
    page.run("show(2)")
    until(page, "document.title === 'job 2'")
    page.run("happens('two')")
    until(page, shows("job 2: two"))
    assert page.run("rendered") == ["job 1: nothing", "job 1: one", "job 2: nothing", "job 2: two"]


STOPPED_PAGE = """
import { createElement as h } from "react";
import { connect } from "towerws";
import { useTowerws } from "towerws-react";

const live = connect(`${base}/websocket/`, { onerror: () => {} });
live.close();

function Job() {
  const newest = useTowerws(live, { job_events: [1] }, () => {});
  return h("li", null, newest === null ? "nothing" : "an event");
}

ReactDOM.createRoot(document.body).render(h("ul", { id: "jobs" }, h(Job)));
"""


def test_a_component_that_is_mounted_after_the_client_stopped(files: Files, chromium: Chromium) -> None:
    """The page stays. An error in the effect would make React remove all of it."""
    page = chromium.open(f"{files.origin}/clients/react/package.json")
    with_react(page, files, STOPPED_PAGE)
    until(page, shows("nothing"))
    page.run("new Promise((done) => setTimeout(done, 100))")
    assert page.run(shows("nothing"))


TYPED = """
import { connect } from "towerws";
import { useTowerws } from "towerws-react";
import useWebsocket from "towerws-react/awx";

const live = connect("/websocket/");
const event = useTowerws<{ n: number }>(live, { jobs: ["status_changed"] }, { stale: () => {}, event: ({ payload }) => payload.n });
export const n: number | undefined = event?.payload.n;
useTowerws(live, { job_events: [42] }, ({ topic }) => topic.length);
export const last = useWebsocket({ jobs: ["summary"] }, async () => {});
export const asAwxCallsIt = useWebsocket({ jobs: ["status_changed"], control: ["limit_reached_1"] });
// @ts-expect-error topics are lists
useTowerws(live, { jobs: "summary" });
"""


def test_types(files: Files, tmp_path: Path) -> None:
    """A user's code compiles with the types of the hooks, and wrong code does not."""
    (tmp_path / "node_modules").mkdir()
    for name, folder in (("towerws", "js"), ("towerws-react", "react")):
        (tmp_path / "node_modules" / name).symlink_to(ROOT / "clients" / folder)
    (tmp_path / "page.ts").write_text(TYPED)
    tsc = str(Node().folder / "node_modules" / ".bin" / "tsc")
    flags = ["--noEmit", "--strict", "--preserveSymlinks", "--skipDefaultLibCheck"]
    flags += ["--target", "ES2023", "--module", "NodeNext", "--lib", "ES2023,DOM,DOM.Iterable"]
    done = subprocess.run([tsc, *flags, "page.ts"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout


def test_packages() -> None:
    """clients/react has the daemon's version, its files and types. The examples use the libraries that the tests lock."""
    folder = ROOT / "clients" / "react"
    package = json.loads((folder / "package.json").read_text())
    assert package["version"] == package["peerDependencies"]["towerws"] == __version__
    assert sorted(path.name for path in folder.iterdir()) == sorted([*package["files"], "README.md", "package.json"])
    locked = json.loads((ROOT / "tests" / "languages" / "node" / "package.json").read_text())["dependencies"]
    wanted = json.loads((ROOT / "examples" / "package.json").read_text())["dependencies"]
    assert wanted.items() <= locked.items()


QUICKSTARTS = {name: (ROOT / "docs" / f"quickstart-{name}.md") for name in ("front-end", "operator", "shell", "django")}


def blocks(name: str, language: str) -> list[str]:
    """The code blocks of a quickstart in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", QUICKSTARTS[name].read_text(), re.MULTILINE | re.DOTALL)


def at(sample: str, daemon: Daemon) -> str:
    """A sample with this daemon's ports in place of the default ones."""
    return sample.replace(":8051", f":{daemon.port}").replace(":9051", f":{daemon.admin_port}")


@pytest.mark.parametrize("name", QUICKSTARTS)
def test_quickstarts_are_short(name: str) -> None:
    """At most ten lines to the first event."""
    text = "".join("".join(blocks(name, language)) for language in ("sh", "html", "python"))
    assert 0 < len([line for line in text.splitlines() if line]) <= 10


def test_quickstart_for_the_front_end(files: Files, chromium: Chromium, tmp_path: Path) -> None:
    """The page is saved as it stands, and shows the event that the last command publishes."""
    ((start, serve, publish), (page_text,)) = ["".join(blocks("front-end", "sh")).splitlines(), blocks("front-end", "html")]
    flags = start.split(" towerws ")[1].removesuffix(" &").split()
    origin = flags[flags.index("--origins") + 1]
    assert serve.split()[:3] == ["python3", "-m", "http.server"]
    assert origin.endswith(serve.split()[3])
    flags[flags.index("--origins") + 1] = files.origin
    with Daemon(tmp_path, "embedded:", *flags[flags.index("--auth") + 2 :], auth=flags[flags.index("--auth") + 1]) as daemon:
        folder = ROOT / "build" / "quickstart"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.html").write_text(at(page_text, daemon).replace("./clients/js", "../../clients/js"))
        page = chromium.open(f"{files.origin}/build/quickstart/index.html")
        subscribed(daemon)
        subprocess.run(["/bin/sh", "-euc", at(publish, daemon)], check=True, timeout=DEADLINE_S, stdout=subprocess.DEVNULL)
        until(page, "document.body.innerText.includes('running')")
        page.go("about:blank")


def test_quickstart_for_operators(tmp_path: Path) -> None:
    """The commands run as they stand, after the installation, and the last one shows the event."""
    lines = "".join(blocks("operator", "sh")).splitlines()
    environment, install, start, *rest = lines
    assert environment.startswith("python3 -m venv ")
    assert install == "pip install ."
    flags = start.split(" towerws ")[1].removesuffix(" &").split()
    with Daemon(tmp_path, "embedded:", *flags[2:], auth=flags[flags.index("--auth") + 1]) as daemon:
        environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        script = at("\n".join(rest), daemon)
        done = subprocess.run(
            ["/bin/bash", "-euc", script], env=environ, cwd=tmp_path, timeout=DEADLINE_S, check=True, capture_output=True, text=True
        )
        assert "running" in done.stdout
