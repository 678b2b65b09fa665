"""`/v1/live/sessions`: OpenAI's Live API (full duplex, no turns) over a duplex conversation."""
