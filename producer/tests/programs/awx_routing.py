"""AWX's ROUTING must be importable: channels imports it with the layer."""

channel_routing = []  # type: ignore[var-annotated]
