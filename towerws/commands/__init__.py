"""The subcommands of `towerws`, one module each. Each runs in a process of its own, not in the daemon's."""
