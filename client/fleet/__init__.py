"""Several servers behind HAProxy on one machine: `python -m client.fleet`, and what its tests stand on."""
