"""The subcommands of `towerws`, one module each. They run in processes of their own, not in the daemon's."""
