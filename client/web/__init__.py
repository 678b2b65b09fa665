"""Gateway between browsers and a served `duplex` model: a page, its socket, a socket of OpenAI Realtime events."""
