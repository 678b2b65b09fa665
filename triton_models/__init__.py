"""Serves step engines: the runtime library, the Triton model repository and the launcher."""
