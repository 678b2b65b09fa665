"""NVIDIA's perf_analyzer against `duplex`, beside the open-loop driver with the same load."""
