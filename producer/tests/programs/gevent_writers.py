"""A gevent process: everything is patched, and hundreds of greenlets publish."""

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402 - what it patches must be patched first
from pace import EXIT_S, report  # noqa: E402

import towerws_producer  # noqa: E402

WRITERS, EACH = 100, 10


def write(writer: int) -> None:
    """Emit, and wait for one confirm."""
    for number in range(EACH):
        towerws_producer.emit("job_events.42", {"writer": writer, "n": number})
    towerws_producer.publish("job_events.42", {"writer": writer, "n": EACH}, timeout=20)


def main() -> None:
    """Run the writers, and a greenlet that needs its share of time."""
    towerws_producer.configure(exit_s=EXIT_S)
    turns = []

    def tick() -> None:
        while True:
            turns.append(1)
            gevent.sleep(0.001)  # not 0: a greenlet that is always ready keeps gevent from its sockets, for seconds on an idle machine

    ticking = gevent.spawn(tick)
    gevent.joinall([gevent.spawn(write, writer) for writer in range(WRITERS)], raise_error=True)
    ticking.kill()
    report(turns=len(turns), stats=towerws_producer.stats())
    towerws_producer.emit("job_events.42", {"last": True})


main()
