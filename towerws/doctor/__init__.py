"""The checks of `towerws doctor`, one module per area. They ask the world with blocking calls, in a process of their own."""
