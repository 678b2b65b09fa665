"""Open-loop load tests: many users in real time, each on a connection of its own."""
