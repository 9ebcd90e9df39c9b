"""The modules that were imported after the package itself, by the first event: the thread imported them."""

import json
import os
import sys

from towerws_producer import Producer

before = set(sys.modules)
with Producer(os.environ["TOWERWS_BROKER"], exchange=os.environ["TOWERWS_EXCHANGE"]) as producer:
    producer.publish("jobs.summary", {"n": 1}, 20)
    json.dump(sorted(set(sys.modules) - before), sys.stdout)
