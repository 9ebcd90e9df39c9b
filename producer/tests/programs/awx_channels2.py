"""AWX 10 to 24's use of their channel layer, on real channels 2, 3 or 4: a new event loop for each emit, and a copy for other nodes."""

import asyncio
import json
import os
import sys

import django
from django.conf import settings
from pace import EXIT_S, job_event, report, timed

BACKEND = sys.argv[4]
CONFIG = {"broker": os.environ["AWX_BROKER"], "exchange": os.environ["AWX_EXCHANGE"], "exit_s": EXIT_S}
if BACKEND.startswith("towerws_producer.channels_redis"):
    CONFIG.update(hosts=[os.environ["AWX_REDIS"]], capacity=10000, group_expiry=157784760)

# Not "channels" in INSTALLED_APPS: that app needs daphne, for a command that publishes nothing.
settings.configure(INSTALLED_APPS=[], CHANNEL_LAYERS={"default": {"BACKEND": BACKEND, "CONFIG": CONFIG}})
django.setup()

import channels  # noqa: E402 - needs the settings
from channels.layers import get_channel_layer  # noqa: E402


def run_sync(coroutine):
    """AWX makes a loop for each call, so no part of the layer may belong to a loop."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(coroutine)
    finally:
        loop.close()


def emit(group, payload):
    """The event, and AWX 10 to 21's copy for the other nodes."""
    text = json.dumps(payload)
    layer = get_channel_layer()
    run_sync(layer.group_send(group, {"type": "internal.message", "text": text, "needs_relay": True}))
    copy = json.dumps({"group": group, "message": text})
    run_sync(layer.group_send("broadcast-group_send", {"type": "internal.message", "text": copy}))


async def metrics_arrive(layer):
    """AWX's own message between nodes goes through Redis with the layer's own channels, and so does its broadcast copy."""
    mine = await layer.new_channel()
    await layer.group_add("metrics", mine)
    await layer.group_add("broadcast-group_send", mine)
    await layer.group_send("metrics", {"type": "internal.message", "text": '{"n": 1}', "needs_relay": True})
    await layer.group_send(
        "broadcast-group_send", {"type": "internal.message", "text": json.dumps({"group": "jobs-summary", "message": "{}"})}
    )
    await layer.group_send("broadcast-group_send", {"type": "internal.message", "text": json.dumps({"group": "metrics", "message": "{}"})})
    return [(await asyncio.wait_for(layer.receive(mine), 10))["text"] for _ in range(2)]


async def nothing_arrives(layer):
    """The layer without Redis: a receiver waits until it is cancelled, and the calls for websockets do nothing."""
    mine = await layer.new_channel()
    await layer.group_add("metrics", mine)
    await layer.send(mine, {"type": "internal.message"})
    try:
        await asyncio.wait_for(layer.receive(mine), 0.05)
    except asyncio.TimeoutError:
        await layer.group_discard("metrics", mine)
        return []
    raise AssertionError("something arrived")


def main():
    """Emit alone, then from forked writers, then print the report."""
    count, writers, each = (int(text) for text in sys.argv[1:4])
    figures = timed(lambda number: emit("job_events-42", job_event(number)), count)
    children = []
    for writer in range(writers):
        child = os.fork()
        if child == 0:
            for number in range(1, each + 1):
                emit("job_events-42", job_event(number, writer=writer))
            sys.exit(0)  # the producer's exit handler sends the rest
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    layer = get_channel_layer()
    loop = asyncio.new_event_loop()
    over_redis = loop.run_until_complete(metrics_arrive(layer) if "redis" in BACKEND else nothing_arrives(layer))
    loop.run_until_complete(layer.close_pools())
    loop.close()
    relay = layer._relay
    flushed = relay.producer.flush(20)
    report(
        flushed=flushed, statuses=statuses, stats=relay.producer.stats(), refused=dict(relay.refused), channels=channels.__version__,
        over_redis=over_redis, **figures
    )  # fmt: skip
    emit("jobs-status_changed", {"unified_job_id": 42, "status": "successful", "group_name": "jobs"})  # and the exit flushes it


main()
