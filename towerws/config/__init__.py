"""Turns flags, environment variables and the file into `Settings`, by one table of options."""
