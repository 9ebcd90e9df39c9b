"""Fault tests: `script/stress` runs named scenarios against real brokers, daemons and clients (`make stress`)."""
