"""Measures the cost of towerws on the real daemon: `make bench` (docs/performance.md describes each scenario)."""
