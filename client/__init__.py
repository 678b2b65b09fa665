"""Talks to the `duplex` model over gRPC; knows the wire contract and nothing of the server's code."""
