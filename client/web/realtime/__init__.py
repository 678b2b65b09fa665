"""`/v1/realtime`: the events of the OpenAI Realtime API, in both spellings, over a duplex conversation."""
