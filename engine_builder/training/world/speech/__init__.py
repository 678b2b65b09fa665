"""Voices: synthesisers, recordings of people, and the agent's own."""
