"""The parts of the RabbitMQ source that `towerws/amqp.py` puts together. Of the daemon's modules, only these import pika."""
