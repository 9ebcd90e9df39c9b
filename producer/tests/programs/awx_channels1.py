"""AWX 1.0 to 9.3's use of its channel layer, on real channels 1.1.8: `Group(name).send({"text": …})`, also in forked writers."""

import json
import os
import sys

import django
from django.conf import settings
from pace import EXIT_S, job_event, report, timed

settings.configure(
    INSTALLED_APPS=[],  # not "channels": that app needs daphne, for a command that publishes nothing
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "towerws_producer.channels1.Layer",
            "ROUTING": "awx_routing.channel_routing",
            # AWX's own settings stay: `url` is the broker, `model` is used by asgi_amqp only.
            "CONFIG": {
                "url": os.environ["AWX_BROKER"],
                "model": "awx.main.models.channels.ChannelGroup",
                "exchange": os.environ["AWX_EXCHANGE"],
                "exit_s": EXIT_S,
            },
        }
    },
)
django.setup()

from channels import Group, channel_layers  # noqa: E402 - needs the settings
from channels.asgi import get_channel_layer  # noqa: E402


def emit(group, payload):
    """Encode, then send to the group, as AWX does."""
    Group(group).send({"text": json.dumps(payload)})


def main():
    """Emit alone, then from forked writers, then print the report."""
    count, writers, each = (int(text) for text in sys.argv[1:4])
    emit("control-limit_reached", {"session_key": "secret"})
    emit("metrics", {"metrics": "{}"})
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
    layer = channel_layers["default"]
    layer.group_add("job_events-42", "reply")
    layer.group_discard("job_events-42", "reply")
    layer.send("reply", {"accept": True})
    assert layer.receive(["websocket.connect"]) == (None, None)
    assert get_channel_layer() is not None
    relay = layer.channel_layer._relay
    flushed = relay.producer.flush(20)
    report(
        flushed=flushed,
        statuses=statuses,
        stats=relay.producer.stats(),
        refused=dict(relay.refused),
        channels=sys.modules["channels"].__version__,
        **figures,
    )
    emit("jobs-status_changed", {"unified_job_id": 42, "status": "successful", "group_name": "jobs"})  # and the exit flushes it


main()
