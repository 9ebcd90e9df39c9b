"""The parts of the RabbitMQ source that `towerws/amqp.py` puts together. Only these, and the publisher, import pika."""
