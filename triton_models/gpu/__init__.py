"""What runs on an NVIDIA GPU only. The CPU serving path never imports this package.

`kernels` and everything that imports it needs torch and OpenAI Triton; `cuda_runtime`, `device_pool` and
`tensorrt_engine` need cuda-python and no torch.
"""
