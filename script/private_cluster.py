r"""Three private RabbitMQ nodes, each in a network namespace: one cluster, whose cables can be pulled.

`python script/private_cluster.py --data DIR` starts a cluster, prints the URL of each node on a line and runs until SIGINT or SIGTERM.
The fault kit imports `PrivateCluster`. Standard library only. It needs root (or a user namespace where one is root) and iproute2.

                 switch (a bridge, in a namespace of its own)
               /         |         \
        node 0         node 1        node 2      each in its namespace; named after its address on the switch
               \         |         /
                 us: one cable to each node, for clients and rabbitmqctl

- The cable to the switch carries what nodes say to each other. `cut` takes it down: that is a network partition, during which
  clients still reach every node.
- No namespace has a name. Each lives as long as the process that holds it, which the kernel ends with us (`tied_to_us`). With the
  last process of a namespace its cables vanish too, our ends included. So nothing stays, even if this process is killed.
- The addresses are those for benchmarks of networks (RFC 2544: 198.18.0.0/15), which nobody routes.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self

from private_rabbitmq import Place, PrivateRabbit, RabbitError, free_port, tied_to_us

SETTLE_S: Final = 60.0
"""How long anything between the nodes may take."""

NET_TICK_S: Final = 8
"""Erlang notices a silent node after 0.75 to 1.25 times this. RabbitMQ's default of 60 s would make each partition last minutes."""

SWITCH_NET: Final = "198.18.0"
"""This process has no interface in it: clusters that run at the same time don't meet."""

NEEDS: Final = ("ip", "tc", "nsenter", "unshare", "setpriv")


def missing_for_cluster() -> str:
    """What a cluster lacks on this system, in words. Empty when nothing does."""
    absent = [name for name in NEEDS if shutil.which(name) is None]
    if absent:
        return f"a cluster needs {', '.join(absent)} (apt-get install iproute2 util-linux)"
    if os.geteuid() != 0:
        return "a cluster needs root, for its network namespaces"
    tried = _run(["unshare", "--net", "ip", "link", "add", "one", "type", "veth", "peer", "name", "other"], check=False)
    if tried.returncode != 0:
        return f"a cluster needs network namespaces, which this system refuses: {tried.stderr.strip()}"
    return ""


class _Namespace:
    """A network namespace, held by one child process that does nothing."""

    def __init__(self) -> None:
        unshare = shutil.which("unshare") or "unshare"
        self._holder = subprocess.Popen(
            tied_to_us([unshare, "--net", "sleep", "infinity"], "KILL"), stdin=subprocess.DEVNULL, start_new_session=True
        )
        self.pid = self._holder.pid
        ours = Path("/proc/self/ns/net").readlink()
        deadline = time.monotonic() + SETTLE_S
        while Path(f"/proc/{self.pid}/ns/net").readlink() == ours:
            if self._holder.poll() is not None or time.monotonic() > deadline:
                raise RabbitError("a network namespace could not be made (unshare --net)")
            time.sleep(0.005)  # nothing announces it: it is asked
        # A namespace outlives its processes while the kernel still tells their peers that they ended, for minutes where a peer is gone too.
        _run([*self.enter, "/bin/sh", "-c", "cd /proc/sys/net/ipv4 && echo 1 >tcp_orphan_retries && echo 1 >tcp_fin_timeout"])

    @property
    def enter(self) -> tuple[str, ...]:
        """The command that starts another one inside."""
        return (shutil.which("nsenter") or "nsenter", f"--net=/proc/{self.pid}/ns/net", "--")

    def ip(self, *args: str) -> None:
        """Run `ip` inside."""
        _run([*self.enter, "ip", *args])

    def tc(self, *args: str) -> None:
        """Run `tc` inside."""
        _run([*self.enter, "tc", *args])

    def close(self) -> None:
        """End it, with the cables that lead into it."""
        self._holder.kill()
        self._holder.wait()


class PrivateCluster:
    """The nodes, numbered from 0. Start it from a thread that outlives it, like a `PrivateRabbit`.

    `partition_handling` is RabbitMQ's `cluster_partition_handling`: `pause_minority`, `autoheal` or `ignore`.
    """

    def __init__(self, data_dir: Path | str, *, count: int = 3, partition_handling: str = "pause_minority", config: str = "") -> None:
        if missing := missing_for_cluster():
            raise RabbitError(missing)
        self._data_dir = Path(data_dir)
        self._count = count
        self._config = f"cluster_partition_handling = {partition_handling}\n{config}"
        self._switch: _Namespace | None = None
        self._spaces: list[_Namespace] = []
        self.nodes: list[PrivateRabbit] = []

    def start(self) -> Self:
        """Start all nodes and return when each sees the others."""
        try:
            places = self._lay_cables()
            cookie, epmd_port = secrets.token_hex(16), free_port()
            names = "".join(
                f"cluster_formation.classic_config.nodes.{at + 1} = towerws@{place.cluster_host}\n" for at, place in enumerate(places)
            )
            config = (
                f"{self._config}\nloopback_users.guest = false\ncluster_formation.peer_discovery_backend = classic_config\n"
                f"cluster_formation.target_cluster_size_hint = {self._count}\n{names}"
            )
            self.nodes = [
                PrivateRabbit(
                    self._data_dir / f"node-{at}", place=place, config=config, cookie=cookie, epmd_port=epmd_port,
                    erlang_args=f"-kernel net_ticktime {NET_TICK_S}",
                )
                for at, place in enumerate(places)
            ]  # fmt: skip
            self.start_nodes(range(self._count))
            self.wait_until_whole()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything: nodes by force, then the namespaces."""
        for node in self.nodes:
            node.kill()
        for space in [*self._spaces, *([self._switch] if self._switch else [])]:
            space.close()
        self._spaces, self._switch = [], None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def urls(self) -> list[str]:
        """Where clients connect, by node."""
        return [node.url for node in self.nodes]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The same, as host and port."""
        return [(node.place.client_host, node.port) for node in self.nodes]

    # nodes

    def start_nodes(self, which: Sequence[int]) -> None:
        """Start several at the same time. After an end of all of them each waits for the others."""
        for at in which:
            self.nodes[at].launch()
        for at in which:
            self.nodes[at].wait_until_it_answers()

    def mend(self) -> None:
        """Put every cable back, start what does not run, and return when the cluster is whole."""
        self.heal()
        for at in range(self._count):
            self.throttle(at, 0)
        self.start_nodes([at for at, node in enumerate(self.nodes) if not node.running])
        self.wait_until_whole()

    def rolling_restart(self, stream: str) -> None:
        """Restart each node in order, one at a time, each when the stream's copies are all there again."""
        for node in self.nodes:
            node.restart()
            self.wait_for_copies(stream)

    def wait_until_whole(self) -> None:
        """Return when each running node says that all nodes run, and that no partition was seen."""
        _until(lambda: all(self._sees_all(node) for node in self.nodes), "the cluster is whole")

    def reaches(self, at: int) -> set[int]:
        """The other nodes that this one is connected with, whether RabbitMQ runs on them or is paused. Empty while it can't answer."""
        try:
            connected = self.nodes[at].eval("nodes()")
        except RabbitError:
            return set()
        return {other for other, node in enumerate(self.nodes) if f"'{node.name}'" in connected}

    def partitions_seen(self, at: int) -> bool:
        """Whether this node says that it was cut off from others (or they from it)."""
        return self.nodes[at].eval("proplists:get_value(partitions, rabbit_mnesia:status())") != "[]"

    # streams

    def leader(self, stream: str) -> int:
        """The node that leads the stream now, waited for."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [at for at, role in self._roles(stream).items() if role == "writer"]
            return len(found) == 1

        _until(look, f"{stream} has a leader")
        return found[0]

    def add_replica(self, stream: str, at: int) -> None:
        """Make a copy of the stream on this node."""
        self._running()[0].tool("rabbitmq-streams", "add_replica", stream, self.nodes[at].name)

    def delete_replica(self, stream: str, at: int) -> None:
        """Remove the copy of the stream on this node."""
        self._running(but=at)[0].tool("rabbitmq-streams", "delete_replica", stream, self.nodes[at].name)

    def copies(self, stream: str) -> set[int]:
        """The nodes whose copy of the stream runs."""
        return set(self._roles(stream))

    def wait_for_copies(self, stream: str, count: int | None = None) -> None:
        """Return when so many copies of the stream run (all by default), and each node that runs has saved what it knows of them.

        Ra writes down which Raft groups a node belongs to half a second late. A node of RabbitMQ 3.10.8 that was killed before that came
        back without its part of the stream coordinator, and stayed so.
        """
        wanted = self._count if count is None else count
        _until(lambda: len(self.copies(stream)) == wanted, f"{wanted} copies of {stream} run")
        for node in self._running():
            node.eval("[dets:sync(Table) || Table <- dets:all()]")

    def offsets(self, stream: str) -> dict[int, int]:
        """The offset of the newest entry in each copy that runs, by node. -1 where it holds none."""
        return {at: offset for at, _, offset in self._status(stream)}

    # cables

    def cut(self, *which: int) -> None:
        """Take down the cables of these nodes to the switch. Clients still reach them."""
        for at in which:
            self._switch_side("link", "set", f"port{at}", "down")

    def heal(self, *which: int) -> None:
        """Put the cables of these nodes back; all by default."""
        for at in which or range(self._count):
            self._switch_side("link", "set", f"port{at}", "up")

    def throttle(self, at: int, bytes_per_s: int) -> None:
        """Let the other nodes send to this one no faster than that. 0 ends it."""
        assert self._switch is not None
        port = f"port{at}"
        if bytes_per_s:
            # A burst of 64 KiB and a queue of at most half a second: TCP sees a slow line.
            self._switch.tc(
                "qdisc", "replace", "dev", port, "root", "tbf", "rate", f"{bytes_per_s}bps", "burst", "64kb", "latency", "500ms"
            )
        else:
            # Without one of its own it is an error that there is none.
            _run([*self._switch.enter, "tc", "qdisc", "del", "dev", port, "root"], check=False)

    def _switch_side(self, *args: str) -> None:
        assert self._switch is not None
        self._switch.ip(*args)

    def _lay_cables(self) -> list[Place]:
        self._switch = _Namespace()
        self._switch.ip("link", "add", "switch", "type", "bridge")
        self._switch.ip("link", "set", "switch", "up")
        net, label = _free_net(), f"tw{os.getpid() % 100_000}{secrets.token_hex(2)}"
        places = []
        for at in range(self._count):
            space = _Namespace()
            self._spaces.append(space)
            space.ip("link", "set", "lo", "up")
            # To the switch.
            self._switch.ip("link", "add", f"port{at}", "type", "veth", "peer", "name", "cluster", "netns", str(space.pid))
            self._switch.ip("link", "set", f"port{at}", "master", "switch", "up")
            cluster_host = f"{SWITCH_NET}.{at + 1}"
            space.ip("address", "add", f"{cluster_host}/24", "dev", "cluster")
            space.ip("link", "set", "cluster", "up")
            # To us: a network of two addresses that are ours, of four.
            ours = f"{label}-{at}"
            _run(["ip", "link", "add", ours, "type", "veth", "peer", "name", "clients", "netns", str(space.pid)])
            _run(["ip", "address", "add", f"{net}.{4 * at + 1}/30", "dev", ours])
            _run(["ip", "link", "set", ours, "up"])
            client_host = f"{net}.{4 * at + 2}"
            space.ip("address", "add", f"{client_host}/30", "dev", "clients")
            space.ip("link", "set", "clients", "up")
            places.append(Place(cluster_host, client_host, space.enter))
        return places

    def _sees_all(self, node: PrivateRabbit) -> bool:
        try:
            running, partitions = (
                node.eval(f"proplists:get_value({key}, rabbit_mnesia:status())") for key in ("running_nodes", "partitions")
            )
        except (RabbitError, subprocess.TimeoutExpired):
            return False
        return running.count("@") == self._count and partitions == "[]"

    def _running(self, but: int = -1) -> list[PrivateRabbit]:
        """The nodes that run, one at least."""
        found = [node for at, node in enumerate(self.nodes) if node.running and at != but]
        if not found:
            raise RabbitError("no node runs")
        return found

    def _roles(self, stream: str) -> dict[int, str]:
        """The role (`writer` or `replica`) of each copy that runs, by node."""
        return {at: role for at, role, _ in self._status(stream)}

    def _status(self, stream: str) -> list[tuple[int, str, int]]:
        """The node, the role and the offset of each copy that runs, from the first node that can answer.

        Empty while the nodes elect, or none can.
        """
        copies = f'rabbit_stream_queue:status(<<"/">>, <<"{stream}">>)'
        code = f"[list_to_tuple([proplists:get_value(Key, Copy) || Key <- [node, role, offset]]) || Copy <- {copies}]"
        for node in self._running():
            try:
                rows = node.eval(code)
            except (RabbitError, subprocess.TimeoutExpired):
                continue
            # A copy that is just starting has no offset yet.
            return [(self._at(name), role, int(offset)) for name, role, offset in re.findall(r"\{'(.+?)', (\w+), (-?\d+)\}", rows)]
        return []

    def _at(self, name: str) -> int:
        return next(at for at, node in enumerate(self.nodes) if node.name == name)


def _run(command: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=SETTLE_S)
    if check and result.returncode != 0:
        raise RabbitError(f"{' '.join(command)}: exit status {result.returncode}\n{result.stdout}{result.stderr}")
    return result


def _until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SETTLE_S
    while not done():
        if time.monotonic() > deadline:
            raise RabbitError(f"not within {SETTLE_S:g} s: {what}")
        time.sleep(0.1)  # between two questions of a poll


def _free_net() -> str:
    """The first three parts of a network in which this process has no interface."""
    taken = set(re.findall(r"inet (198\.19\.\d+)\.", _run(["ip", "-4", "address"]).stdout))
    return random.choice([net for net in (f"198.19.{third}" for third in range(256)) if net not in taken])  # noqa: S311 - not a secret


def main() -> int:
    """Run one cluster in the foreground until a signal."""
    parser = argparse.ArgumentParser(description="Run a private cluster until SIGINT or SIGTERM; it prints one URL a line.")
    parser.add_argument("--data", required=True, metavar="DIR", help="directory for everything the nodes write")
    parser.add_argument("--nodes", type=int, default=3, help="how many nodes (default 3)")
    parser.add_argument("--partition-handling", default="pause_minority", choices=["pause_minority", "autoheal", "ignore"])
    args = parser.parse_args()

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        with PrivateCluster(args.data, count=args.nodes, partition_handling=args.partition_handling) as cluster:
            print(*cluster.urls, sep="\n", flush=True)
            signal.pause()
    except RabbitError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
