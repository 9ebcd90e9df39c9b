"""Stands in for `awx-manage shell -c CODE`: AWX's own settings for its channel layer, then the files of conf.d, then the code.

`awx.main.consumers.emit_channel_notification` follows AWX's: the same calls, on real channels. AWX itself is not used.
"""

import asyncio
import glob
import json
import os
import sys
import types

import channels
import django
from django.conf import settings

OLD = channels.__version__.startswith("1.")

if OLD:
    DEFAULT = {
        "BACKEND": "asgi_amqp.AMQPChannelLayer",
        "ROUTING": "awx.main.routing.channel_routing",
        "CONFIG": {"url": "amqp://elsewhere"},
    }
else:
    DEFAULT = {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {"hosts": [os.environ["AWX_REDIS"]], "capacity": 10000},
    }


def emit_channel_notification(group, payload):
    """Publish one event with the calls of this AWX version."""
    text = json.dumps(payload)
    if OLD:
        from channels import Group  # noqa: PLC0415 - channels 1 alone has it

        Group(group).send({"text": text})
        return
    from channels.layers import get_channel_layer  # noqa: PLC0415 - not in channels 1

    layer = get_channel_layer()
    copy = json.dumps({"group": group, "message": text})
    for name, message in ((group, {"text": text, "needs_relay": True}), ("broadcast-group_send", {"text": copy})):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(layer.group_send(name, dict(message, type="internal.message")))
        loop.close()


def main():
    """`shell -c CODE`."""
    assert sys.argv[1:3] == ["shell", "-c"], sys.argv
    for name, content in (("routing", {"channel_routing": []}), ("consumers", {"emit_channel_notification": emit_channel_notification})):
        module = types.ModuleType("awx.main." + name)
        module.__dict__.update(content)
        sys.modules[module.__name__] = module
    for name in ("awx", "awx.main"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    scope = {"CHANNEL_LAYERS": {"default": DEFAULT}}
    for path in sorted(glob.glob(os.path.join(os.environ["AWX_CONF_D"], "*.py"))):
        with open(path) as file:
            exec(compile(file.read(), path, "exec"), scope)
    settings.configure(INSTALLED_APPS=[], CHANNEL_LAYERS=scope["CHANNEL_LAYERS"])
    django.setup()
    exec(sys.argv[3], {})


main()
