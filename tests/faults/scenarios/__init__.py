"""The scenarios, one module for each kind of fault. `MODULES` in `tests/faults/__main__.py` lists them."""
