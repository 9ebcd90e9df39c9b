"""From flags, environment and file to `Settings`, by one table of options."""
