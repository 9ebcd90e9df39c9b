"""Who may listen: one module per way of authenticating, all with the interface of `towerws.auth.base.Method`."""
