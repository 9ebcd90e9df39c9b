r"""Made-up output of jobs, as Ansible prints it: one `Output` for each event of a job.

Lines end with `\r\n`, and SGR sequences colour the results. Some titles have wide and accented characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

HOSTS = ("web01.example.com", "web02.example.com", "web03.example.com", "db01.example.com", "cache01.example.com")
RECAP_COLUMNS = 79  # Ansible's banners are as wide as an 80-column terminal allows

_GREEN, _YELLOW, _RED, _CYAN, _PURPLE = "0;32", "0;33", "0;31", "0;36", "0;35"

_PLAYS = (
    ("Roll out shop frontend", "frontend", ("Install packages", "Write proxy configuration", "Publier la page d'accueil, 部署 🚀")),
    ("Patch database servers", "postgres", ("Stop replication", "Upgrade packages", "Run migrations", "Start replication")),
    ("Renew certificates", "tls", ("Ask for certificates", "Copy certificates", "Größe der Schlüssel prüfen ≥ 2048 bit")),
    ("Nightly backup", "backup", ("Dump databases", "Copy to storage", "Drop old backups")),
)
_MESSAGES = ("service answers in 42 ms", "3 files copied", "nothing to do", "日本語テスト ✓", "схема обновлена")


@dataclass(frozen=True, slots=True)
class Output:
    """One output event of a job, without the fields that AWX adds: ids, counters, line numbers, dates."""

    event: str
    stdout: str = ""
    level: int | str = 0
    data: dict[str, object] = field(default_factory=dict)
    failed: bool = False
    changed: bool = False
    play: str = ""
    role: str = ""
    task: str = ""


def _paint(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m"


def _banner(title: str) -> str:
    return f"\r\n{title} {'*' * max(3, RECAP_COLUMNS - len(title) - 1)}\r\n"


def playbook(rng: Random) -> Iterator[Output]:
    """Yield the output of a playbook on a few hosts. The job failed if one of its outputs failed."""
    play, role, tasks = rng.choice(_PLAYS)
    name = f"{role}.yml"
    hosts = list(HOSTS[: rng.randint(1, len(HOSTS))])
    tally = {host: {"ok": 0, "changed": 0, "unreachable": 0, "failed": 0, "skipped": 0} for host in hosts}
    yield Output("playbook_on_start", data={"playbook": name})
    if rng.random() < 0.2:
        yield Output("deprecated", _paint(_PURPLE, '[DEPRECATION WARNING]: the "include" keyword goes away in a later release'))
    yield Output("playbook_on_play_start", _banner(f"PLAY [{play}]"), 1, {"playbook": name, "play": play, "name": play}, play=play)
    for task in ("Gathering Facts", *tasks):
        in_role = "" if task == "Gathering Facts" else role
        title = f"{in_role} : {task}" if in_role else task
        data: dict[str, object] = {"playbook": name, "play": play, "task": task, "name": title}
        yield Output("playbook_on_task_start", _banner(f"TASK [{title}]"), 2, data, play=play, role=in_role, task=task)
        for host in list(hosts):
            output = _result(rng, host, data, play=play, role=in_role, task=task)
            tally[host][_outcome(output)] += 1
            yield output
            if output.failed:
                hosts.remove(host)
        if not hosts:
            text = "\r\n" + _paint(_RED, "NO MORE HOSTS LEFT " + "*" * (RECAP_COLUMNS - 19)) + "\r\n"
            yield Output("playbook_on_no_hosts_remaining", text, 2, {"playbook": name, "play": play}, play=play)
            break
    yield Output("playbook_on_stats", _banner("PLAY RECAP") + _recap(tally), 1, {"playbook": name})


def _outcome(output: Output) -> str:
    if output.changed:
        return "changed"
    return {"runner_on_ok": "ok", "runner_on_skipped": "skipped", "runner_on_unreachable": "unreachable"}.get(output.event, "failed")


def _result(rng: Random, host: str, task_data: dict[str, object], *, play: str, role: str, task: str) -> Output:
    chance = rng.random()
    event, failed, changed = "runner_on_ok", False, False
    result: dict[str, object] = {"changed": False}
    if chance < 0.02:
        event, failed = "runner_on_failed", True
        result |= {"msg": "Could not find the requested service nginx", "rc": rng.randint(1, 127)}
        text = _paint(_RED, f"fatal: [{host}]: FAILED! => {json.dumps(result)}")
    elif chance < 0.03:
        event, failed = "runner_on_unreachable", True
        result |= {"msg": f"ssh: connect to host {host} port 22: No route to host", "unreachable": True}
        text = _paint(_RED, f"fatal: [{host}]: UNREACHABLE! => {json.dumps(result)}")
    elif chance < 0.13:
        event = "runner_on_skipped"
        text = _paint(_CYAN, f"skipping: [{host}]")
    elif chance < 0.5:
        changed = True
        result["changed"] = True
        text = _paint(_YELLOW, f"changed: [{host}]")
    elif chance < 0.6:
        result["msg"] = rng.choice(_MESSAGES)
        body = json.dumps(result, indent=4, ensure_ascii=False).replace("\n", "\r\n")
        text = _paint(_GREEN, f"ok: [{host}] => {body}")
    else:
        text = _paint(_GREEN, f"ok: [{host}]")
    data = {**task_data, "host": host, "remote_addr": host, "res": result}
    return Output(event, text, 3, data, failed=failed, changed=changed, play=play, role=role, task=task)


def _recap(tally: dict[str, dict[str, int]]) -> str:
    lines = []
    for host, counts in tally.items():
        bad = counts["failed"] + counts["unreachable"]
        colour = _RED if bad else _YELLOW if counts["changed"] else _GREEN
        ok = counts["ok"] + counts["changed"]
        rest = "  ".join(f"{word}={counts[word]}" for word in ("changed", "unreachable", "failed", "skipped"))
        lines.append(f"{_paint(colour, host)}{' ' * (26 - len(host))} : {_paint(_GREEN, f'ok={ok}')}  {rest}\r\n")
    return "".join(lines)


def project_update(rng: Random) -> Iterator[Output]:
    """Yield the output of a checkout of a project's repository."""
    play, task = "Update source tree if necessary", "update project using git"
    yield Output("playbook_on_start", data={"playbook": "project_update.yml"})
    yield Output("playbook_on_play_start", _banner(f"PLAY [{play}]"), 1, {"play": play, "name": play}, play=play)
    data: dict[str, object] = {"play": play, "task": task, "task_action": "git", "name": task}
    yield Output("playbook_on_task_start", _banner(f"TASK [{task}]"), 2, data, play=play, task=task)
    result = {"changed": True, "before": f"{rng.getrandbits(48):012x}", "after": f"{rng.getrandbits(48):012x}"}
    text = _paint(_YELLOW, "changed: [localhost]")
    yield Output("runner_on_ok", text, 3, {**data, "host": "localhost", "res": result}, changed=True, play=play, task=task)
    tally = {"localhost": {"ok": 0, "changed": 1, "unreachable": 0, "failed": 0, "skipped": 0}}
    yield Output("playbook_on_stats", _banner("PLAY RECAP") + _recap(tally), 1, {"playbook": "project_update.yml"})


def inventory_update(rng: Random) -> Iterator[Output]:
    """Yield the output of an import of hosts from a cloud: several lines per event."""
    at_s = rng.uniform(0.8, 2)
    yield Output("verbose", f"{at_s:9.3f} INFO     Updating inventory 2: Shop production", "")
    for _ in range(rng.randint(2, 6)):
        lines = []
        for _ in range(rng.randint(1, 5)):
            at_s += rng.uniform(0.01, 0.4)
            address = f"ip-10-0-{rng.randrange(256)}-{rng.randrange(256)}"
            lines.append(f'{at_s:9.3f} DEBUG    Host "{address}.eu-central-1.compute.internal" added to group "tag_role_web"')
        yield Output("verbose", "\r\n".join(lines), "")
    yield Output("verbose", f"{at_s + 0.3:9.3f} INFO     Import done in {at_s:.1f} s", "")


def ad_hoc_command(rng: Random) -> Iterator[Output]:
    """Yield the output of one module on a few hosts."""
    yield Output("verbose", "Using /etc/ansible/ansible.cfg as config file", "")
    for host in rng.sample(HOSTS, rng.randint(1, len(HOSTS))):
        data: dict[str, object] = {"host": host, "remote_addr": host, "task": "ping", "task_action": "ping"}
        if rng.random() < 0.1:
            text = _paint(_RED, f'{host} | UNREACHABLE! => {{"unreachable": true}}')
            yield Output("runner_on_unreachable", text, "", {**data, "res": {"unreachable": True}}, failed=True)
        else:
            text = _paint(_GREEN, f'{host} | SUCCESS => {{\r\n    "changed": false, \r\n    "ping": "pong"\r\n}}')
            yield Output("runner_on_ok", text, "", {**data, "res": {"ping": "pong", "changed": False}})


def system_job(rng: Random) -> Iterator[Output]:
    """Yield the output of a clean-up job."""
    yield Output("verbose", f"Deleted {rng.randrange(100)} jobs older than 120 days; {rng.randrange(1000, 9000)} jobs kept\r\n", "")
