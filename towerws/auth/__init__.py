"""Authentication. Each method has a module, and implements `towerws.auth.base.Method`."""
