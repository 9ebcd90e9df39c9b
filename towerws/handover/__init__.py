"""A restart that closes no connection: the running process hands its sockets and its connections to its successor."""
