"""Imports every module that needs no other library, then publishes an event in each way. Runs under every Python."""

import asyncio
import platform
import sys

from pace import EXIT_S, report

import towerws_producer
from towerws_producer import aio, channels1


async def later() -> str:
    """A coroutine for asyncio."""
    return await aio.publish("job_events.42", {"by": "aio"})


def main() -> None:
    """The broker and the exchange are in the environment."""
    towerws_producer.configure(exit_s=EXIT_S)
    assert towerws_producer.emit("job_events.42", {"by": "emit"})
    towerws_producer.publish("job_events.42", '{"by": "publish"}')
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(later())
    loop.close()
    channels1.Layer(url="amqp://nobody@127.0.0.1:1").send_group("job_events-42", {"text": '{"by": "layer"}'})  # TOWERWS_BROKER wins
    report(python=platform.python_version(), stats=towerws_producer.stats(), modules=len(sys.modules))
    towerws_producer.emit("job_events.42", {"by": "exit"})


main()
