"""The parts of a websocket connection that `towerws/protocol.py` puts together."""
