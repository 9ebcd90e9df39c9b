"""Made-up AWX events for `towerws demo`. Pure functions, which the daemon does not use."""
