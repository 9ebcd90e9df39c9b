"""What lets `twistd` offer `towerws`. twistd reads this for every command, so it imports nothing of ours."""

from twisted.application.service import ServiceMaker

towerws = ServiceMaker("towerws", "towerws.tap", "Live events from RabbitMQ to browsers", "towerws")
