"""What towerws costs, measured on the real daemon: `make bench` (docs/performance.md says what each scenario does)."""
