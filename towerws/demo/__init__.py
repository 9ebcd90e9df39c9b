"""Made-up AWX events for `towerws demo`: pure, with no part in the daemon."""
