"""The serving runtime. Imports no Triton and no torch, so every part of it can be tested alone."""
