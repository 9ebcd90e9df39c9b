"""Sizes with which a test tells a linear reader from a quadratic one without a clock.

A linear reader needs well below a second for them. A quadratic one makes 10**12 steps. The timeout of pytest ends it.
"""

LONG_BYTES = 100 * 16_384
"""100 times the head of a request."""

LONGER = 30
"""So many times the longest message, which is 64 KiB."""
