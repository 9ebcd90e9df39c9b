"""A process that forks repeatedly while four threads emit. The children work, whichever locks the threads hold at that moment."""

import os
import sys
import threading
import time

from pace import EXIT_S, report

import towerws_producer

THREADS, CHILDREN, EACH, BURST = 4, 12, 50, 10


def emit_many(by: str, first: int, count: int) -> None:
    """Emit this many events of one writer."""
    for number in range(first, first + count):
        towerws_producer.emit("job_events.42", {"by": by, "n": number})


def main() -> None:
    """The threads emit in bursts until the last child has ended."""
    towerws_producer.configure(exit_s=EXIT_S)
    towerws_producer.publish("job_events.42", {"by": "parent", "n": 0})
    emitted = [0] * THREADS
    ended = threading.Event()

    def write(thread: int) -> None:
        while not ended.is_set():
            emit_many("thread %d" % thread, emitted[thread], BURST)
            emitted[thread] += BURST
            time.sleep(0.002)  # the writers' pace

    threads = [threading.Thread(target=write, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    children = []
    for number in range(CHILDREN):
        forked_at = sum(emitted)
        child = os.fork()
        if child == 0:
            emit_many("child %d" % number, 0, EACH)
            sys.exit(0)  # the exit handler sends its events
        children.append(child)
        while sum(emitted) < forked_at + THREADS * BURST:  # so that the next fork, too, happens while they emit
            time.sleep(0.001)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    ended.set()
    for thread in threads:
        thread.join()
    flushed = towerws_producer.flush(20)
    report(statuses=statuses, emitted=emitted, flushed=flushed, stats=towerws_producer.stats())


main()
