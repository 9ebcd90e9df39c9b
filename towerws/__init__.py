"""towerws: live events from RabbitMQ to browsers."""

__version__ = "0.2.0"
