"""The server, started as its users start it and asked by the clients that they use."""
