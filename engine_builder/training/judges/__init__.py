"""Judges that do not know the model: they hear audio, see frames, and know the agent's clean words at most."""
