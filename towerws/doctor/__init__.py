"""The checks of `towerws doctor`, one module per area. They ask servers and this machine with blocking calls, in the command's process."""
