"""A stand-in for `tensorrt`: the same names, arguments and results; a plan names a step function, run on the CPU.

It holds the executor to TensorRT's rules: before it runs, a context wants its profile, then all input shapes inside the
profile, then all addresses, and the memory to work in.
"""

from __future__ import annotations

import ctypes
import math
from enum import Enum, IntEnum
from typing import Any

import numpy as np
import torch

__version__ = "11.4.fake"
DataType = Enum("DataType", "FLOAT HALF BF16 INT32 INT64 BOOL UINT8")
ExecutionContextAllocationStrategy = Enum("ExecutionContextAllocationStrategy", "STATIC USER_MANAGED")
EngineValidity = IntEnum("EngineValidity", "VALID SUBOPTIMAL INVALID")
_KINDS = {
    "float32": (DataType.FLOAT, np.float32),
    "int64": (DataType.INT64, np.int64),
    "bool": (DataType.BOOL, np.bool_),
    "uint8": (DataType.UINT8, np.uint8),
}
STEPS: dict[bytes, Any] = {}  # plan -> (StepSpec, profiles)
CUDA: list[Any] = []  # the FakeCuda whose stream work is recorded
SCRATCH_BYTES = 4096


class Logger:
    ERROR = 1

    def __init__(self, level):
        self.level = level


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, plan):
        return Engine(*STEPS[plan]) if plan in STEPS else None


class Engine:
    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, spec, profiles) -> None:
        self.spec, self.profiles = spec, profiles
        with torch.no_grad():
            results = spec.module(*spec.inputs.values())
        self.outputs = dict(zip(spec.outputs, results, strict=True))
        self.names = [*spec.inputs, *spec.outputs]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(profiles)

    def get_tensor_name(self, i):
        return self.names[i]

    def get_tensor_dtype(self, name):
        tensor = self.spec.inputs[name] if name in self.spec.inputs else self.outputs[name]
        return _KINDS[str(tensor.dtype).removeprefix("torch.")][0]

    def get_tensor_profile_shape(self, name, profile):
        axes, shape = self.spec.dynamic.get(name, {}), self.spec.inputs[name].shape
        symbols = self.profiles[profile]
        return [tuple(symbols[axes[i]][which] if i in axes else n for i, n in enumerate(shape)) for which in range(3)]

    def create_runtime_config(self):
        return RuntimeConfig()

    def create_execution_context(self, settings):
        self.settings = settings
        if isinstance(settings, RuntimeConfig):
            settings.cache.kernels += 1
        return Context(self)


class RuntimeConfig:
    """Of TensorRT-RTX."""

    strategy = cache = dynamic_shapes_kernel_specialization_strategy = None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return RuntimeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class RuntimeCache:
    """Of TensorRT-RTX. Holds a kernel for each context that was made with it."""

    def __init__(self) -> None:
        self.kernels = 0

    def deserialize(self, blob):
        known = blob.startswith(b"kernels:")
        if known:
            self.kernels = int(blob[8:])
        return known

    def serialize(self):
        return memoryview(b"kernels:%d" % self.kernels)


class Context:
    def __init__(self, engine) -> None:
        self.engine = engine
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def set_device_memory(self, memory, size):
        self.memory = (memory, size)

    def set_optimization_profile_async(self, profile, stream):
        self.profile = profile
        return True

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        fits = all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
        self.shapes[name] = tuple(shape)
        return fits

    def infer_shapes(self):
        return [name for name in self.engine.spec.inputs if name not in self.shapes]

    def get_tensor_shape(self, name):
        sizes: dict[str, int] = {}
        for tensor, axes in self.engine.spec.dynamic.items():
            sizes |= {symbol: self.shapes[tensor][axis] for axis, symbol in axes.items()}
        shape = list(self.engine.outputs[name].shape)
        shape[1 if name in ("k_new", "v_new") else 0] = sizes["batch"]
        if name in ("k_new", "v_new"):
            shape[2] = sizes["tokens"]
        return tuple(shape)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address != 0

    def execute_async_v3(self, stream):
        ready = set(self.addresses) == set(self.engine.names) and self.memory[1] >= SCRATCH_BYTES
        if ready:
            CUDA[0].do(self._run)
        return ready

    def _array(self, name, shape, dtype):
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = (ctypes.c_ubyte * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype=dtype).reshape(shape)

    def _run(self) -> None:
        spec = self.engine.spec
        inputs = []
        for name, example in spec.inputs.items():
            kind = _KINDS[str(example.dtype).removeprefix("torch.")][1]
            inputs.append(torch.from_numpy(self._array(name, self.shapes[name], kind)))
        with torch.no_grad():
            results = spec.module(*inputs)
        for name, result in zip(spec.outputs, results, strict=True):
            value = result.numpy()
            self._array(name, self.get_tensor_shape(name), value.dtype)[...] = value
