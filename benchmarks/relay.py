"""The floor behind the broker: the same bare loop, for messages that come through a stream.

`python -m benchmarks.relay BROKER EXCHANGE PORT CLIENTS`. Its latency includes the broker's part, unlike floor's. The first
CLIENTS connections are clients.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import pika

from benchmarks.messages import frame


def main(broker: str, exchange: str, port: int, clients: int) -> None:
    """Serve until killed."""
    connection = pika.BlockingConnection(pika.URLParameters(broker))
    channel = connection.channel()
    channel.exchange_declare(exchange, "topic", durable=True)
    channel.queue_declare(f"{exchange}.events", durable=True, arguments={"x-queue-type": "stream"})
    channel.queue_bind(f"{exchange}.events", exchange, "#")
    channel.basic_qos(prefetch_count=1000)
    sockets: list[socket.socket] = []

    def send(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        data = frame(body)
        for each in sockets:
            each.sendall(data)
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(f"{exchange}.events", send, arguments={"x-stream-offset": "next"})
    with socket.create_server(("127.0.0.1", port), backlog=4096) as server:
        print("ready", flush=True)
        sockets += [server.accept()[0] for _ in range(clients)]
        for each in sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        channel.start_consuming()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
