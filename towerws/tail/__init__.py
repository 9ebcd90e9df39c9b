"""The client behind `towerws tail`: which topics it asks for, its connection, and how it prints events."""
