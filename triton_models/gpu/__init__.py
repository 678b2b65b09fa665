"""What runs on an NVIDIA GPU only. The CPU serving path never imports this package.

`kernels` and `torch_cuda` need torch and OpenAI Triton; `cuda` and `tensorrt` need cuda-python and no torch.
"""
