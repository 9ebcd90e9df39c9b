"""A producer in a process of its own: {"n": 0}, {"n": 1}, … on one topic, each until the broker has confirmed it.

`python -m tests.numbered_load URL EXCHANGE TOPIC PER_S [STREAM]` writes each count on a line, and ends when its stdin does. A number
is sent again, under the same `message_id`, when its confirm was lost. With STREAM it publishes only once that is there: a booting
RabbitMQ 3.10 takes messages before its streams stand, and never confirms them.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import Any

import pika


def main(url: str, exchange: str, topic: str, per_s: str, stream: str = "") -> None:
    """Publish until stdin ends; the last line is the number of messages."""
    logging.disable(logging.CRITICAL)  # what pika has to say about a broker that is killed is expected
    stop = threading.Event()

    def watch_stdin() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=watch_stdin, daemon=True).start()
    channel: Any = None
    count = 0
    while not stop.is_set():
        try:
            if channel is None:
                parameters = pika.URLParameters(url)
                parameters.socket_timeout = parameters.blocked_connection_timeout = 3
                channel = pika.BlockingConnection(parameters).channel()
                if stream:
                    channel.queue_declare(stream, passive=True)
                channel.confirm_delivery()
            properties = pika.BasicProperties(message_id=f"{topic}/{count}", delivery_mode=2)
            channel.basic_publish(exchange, topic, json.dumps({"n": count}).encode(), properties)
        except (pika.exceptions.AMQPError, OSError):
            channel = None
            time.sleep(0.1)  # the producer's own backoff
            continue
        count += 1
        sys.stdout.write(f"{count}\n")
        sys.stdout.flush()
        stop.wait(1 / float(per_s))


if __name__ == "__main__":
    main(*sys.argv[1:])
