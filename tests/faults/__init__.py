"""Fault tests: `python -m tests.faults` runs named scenarios against real brokers, daemons and clients (`make stress`)."""
