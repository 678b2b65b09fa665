"""Builds engines from step graphs, one module a target."""
