"""A Celery application whose tasks publish. Run as a program, it requests `sys.argv[1]` tasks."""

import os
import sys

from celery import Celery
from pace import EXIT_S

import towerws_producer

app = Celery("celery_tasks", broker=os.environ["CELERY_BROKER"])
app.conf.update(
    task_default_queue=os.environ["CELERY_QUEUE"],
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    worker_enable_remote_control=False,
)

EACH = 25


@app.task
def emit_all(task: int) -> None:
    """Emit and end. With one task for each child, the child's exit has to send all events."""
    towerws_producer.configure(exit_s=EXIT_S)
    for number in range(EACH):
        towerws_producer.emit("job_events.42", {"task": task, "n": number, "pid": os.getpid()})


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        emit_all.delay(number)
