"""What the command `towerws` does: processes of their own, beside the daemon."""
