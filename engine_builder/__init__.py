"""Turns a checkpoint of a native-streaming duplex Transformer into step graphs and engines."""
