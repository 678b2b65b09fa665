"""Trains the tiny checkpoint: synthesised conversations, codec fitting, joint training, judges. Build time only."""
