"""Several worker processes on one port, below a small parent (`--workers`).

`processes` starts the workers and watches them, `supervisor` is the parent's service, and `site` is its admin port. `answers` asks the
workers, and puts their figures together. `worker` is the worker's side. A worker is a whole daemon. It sends its parent the notifications
that any daemon sends to systemd.
"""
