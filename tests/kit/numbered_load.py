"""A producer process: {"n": 0}, {"n": 1}, … on one topic, each repeated until the broker confirms it.

`python -m tests.kit.numbered_load URL EXCHANGE TOPIC PER_S [STREAM]` writes each count on a line, and ends when its stdin does. If a
confirm is lost, it sends the number again with the same `message_id`. With STREAM it waits for that stream first: a booting
RabbitMQ 3.10 accepts messages before its streams are ready, and never confirms them.
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
    """Publish until stdin ends. The last line is the number of messages."""
    logging.disable(logging.CRITICAL)  # pika's messages about a killed broker are expected
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
