"""Authentication. Each method has a module and the interface of `towerws.auth.base.Method`."""
