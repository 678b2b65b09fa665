"""The model in PyTorch: backbone, codecs, encoders, the four step functions and the oracle. Build time only."""
