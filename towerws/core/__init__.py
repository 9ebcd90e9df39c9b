"""The core: plain Python without Twisted, I/O or a clock. Imports nothing of towerws but itself."""
