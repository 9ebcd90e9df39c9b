"""Makes `twistd` offer `towerws`. twistd imports this for every command, so it imports nothing of towerws."""

from twisted.application.service import ServiceMaker

towerws = ServiceMaker("towerws", "towerws.tap", "Live events from RabbitMQ to browsers", "towerws")
