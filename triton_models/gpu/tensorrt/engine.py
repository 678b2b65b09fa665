"""Plans of TensorRT and TensorRT-RTX, bound by address: what `runtime.engines.engine.Engine` asks for, without torch.

A call of given shapes has a context, buffers and a CUDA graph of its own (`call.py`), made when the shapes first come.
The KV pool is bound where it lies and never copied. K and V that a think pass makes stay on the device (`DeviceArray`),
for the pool to take. Rows and pages are rounded up to buckets (`buckets.py`), so that few shapes occur; a bounded
number of them is kept.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine_builder.manifest import TENSORRT_MODULES, EngineEntry, Manifest, TensorSpec
from triton_models.runtime.engines.engine import PERFORMER_STEPS, EngineError, EngineSet
from triton_models.runtime.kv.pool import Pool

from ..cuda.buckets import Limits, used_pages
from ..cuda.cuda_runtime import CudaRuntime, DeviceArray
from ..cuda.device_pool import to_bits
from ..cuda.staging import Slot
from .call import Call, Copies
from .probe import probe
from .runtime_cache import CacheFile, place_of
from .solver_bank import PlanBank, Shapes

MAX_PROMPTS = 8  # lengths of prompt passes that are kept beside all block and slot passes
POOLS = ("k_pool", "v_pool")
ON_DEVICE = ("k_new", "v_new")  # outputs that no host needs
RAGGED = ("page_table", "page_range")
_DTYPES = {
    "FLOAT": "float32",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}

Inputs = Mapping[str, Any]


class PlanEngine:
    """One plan. One thread calls it; engines of one role share a CudaRuntime, whose stream orders their calls."""

    def __init__(
        self,
        step: str,
        plan: bytes,
        entry: EngineEntry,
        limits: Limits,
        trt: Any,
        cuda: CudaRuntime,
        cache: CacheFile | None = None,
    ) -> None:
        """cache: where TensorRT-RTX's kernels are kept; None: nowhere

        Raises EngineError if the library does not take the plan, or the plan is not what the manifest says.
        """
        self.step, self.trt, self.cuda = step, trt, cuda
        self._entry, self._limits = entry, limits
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"{step}: {trt.__name__} {trt.__version__} cannot load {entry.file}; see its messages above"
            )
        self.dtypes = self._check_tensors()
        # Contexts of one engine run one after the other, so they can work in the same memory.
        size = int(self._engine.device_memory_size_v2)
        self._scratch, self._scratch_bytes = cuda.allocate((max(size, 1),), "uint8"), size
        self.max_calls = 2 * len(limits.all_rows()) * len(limits.all_pages()) + MAX_PROMPTS
        self._cache, self._compiled = cache, None
        self._settings = self._runtime_settings()
        self._kv: dict[str, DeviceArray] = {}
        self._calls: OrderedDict[tuple[Any, ...], Call] = OrderedDict()
        self._copies: dict[str, DeviceArray] = {}

    def _check_tensors(self) -> dict[str, str]:
        """Names and types of all inputs and outputs, equal to the manifest's."""
        e = self._engine
        found = {
            name: _DTYPES[e.get_tensor_dtype(name).name] for name in map(e.get_tensor_name, range(e.num_io_tensors))
        }
        expected = {t.name: t.dtype for t in (*self._entry.inputs, *self._entry.outputs)}
        wrong = [
            f"{n}: expected {expected.get(n)}, got {found.get(n)}"
            for n in sorted(expected | found)
            if expected.get(n) != found.get(n)
        ]
        if wrong:
            raise EngineError(f"{self.step}: {self._entry.file} is not what the manifest says: {'; '.join(wrong)}")
        return found

    def run(self, inputs: Inputs) -> dict[str, Any]:
        """All outputs: host arrays of the rows that came in, but `k_new` and `v_new` as `DeviceArray`s that the next
        call overwrites, and `finite` bool [B] beside them. Raises EngineError that names tensor and profile.
        """
        self.cuda.bind_thread()
        if "page_range" in inputs:
            pages = used_pages(inputs["page_range"])
            inputs = {**inputs, **{name: inputs[name][:, :pages] for name in RAGGED}}
        batch, shapes = self._shapes(inputs)
        pools = {name: self.pool(name, inputs[name]) for name in POOLS if name in shapes}
        key = (tuple(shapes.values()), tuple(pool.pointer for pool in pools.values()))
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self.prepare(shapes, pools)
            while len(self._calls) > self.max_calls:
                self._calls.popitem(last=False)[1].close()
        self._calls.move_to_end(key)
        try:
            outputs = {**call.run(inputs, batch), **call.kept}
        except ValueError as error:
            raise EngineError(f"{self.step}: {error}") from None
        if "logits" in outputs:  # NaN in any K or V reaches the last token through attention
            outputs["finite"] = np.isfinite(outputs["logits"]).all(axis=1)
        return outputs

    # -- shapes ------------------------------------------------------------------------------------------------
    def _shapes(self, inputs: Inputs) -> tuple[int, Shapes]:
        """Rows of the call, and the shape of every input once rows and pages are rounded up."""
        symbols: dict[str, int] = {}
        for spec in self._entry.inputs:
            value = inputs.get(spec.name)
            if value is None or len(value.shape) != len(spec.shape):
                got = "nothing" if value is None else f"shape {list(value.shape)}"
                raise EngineError(f"{self.step}: {spec.name}: expected shape {list(spec.shape)}, got {got}")
            for axis, size in zip(spec.shape, value.shape, strict=True):
                if symbols.setdefault(axis, size) != size if isinstance(axis, str) else axis != size:
                    known = {name: n for name, n in symbols.items() if name in spec.shape}
                    raise EngineError(
                        f"{self.step}: {spec.name}: expected shape {list(spec.shape)} with {known}, "
                        f"got {list(value.shape)}"
                    )
        batch = symbols["batch"]
        symbols["batch"] = self._limits.rows(batch)
        if "pages" in symbols:
            symbols["pages"] = self._limits.pages(symbols["pages"])
        return batch, self.resolve(symbols)

    def resolve(self, symbols: Mapping[str, int]) -> Shapes:
        """The shape of every input."""
        return {spec.name: _resolve(spec, symbols) for spec in self._entry.inputs}

    def _profile(self, shapes: Shapes) -> int:
        """The profile that covers these shapes. EngineError lists the first misfit of every profile."""
        reasons = []
        for profile in range(self._engine.num_optimization_profiles):
            for name, shape in shapes.items():
                low, _, high = (tuple(s) for s in self._engine.get_tensor_profile_shape(name, profile))
                if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
                    reasons.append(f"profile {profile}: {name} {list(low)} to {list(high)}, got {list(shape)}")
                    break
            else:
                return profile
        raise EngineError(f"{self.step}: no profile of {self._entry.file} takes these shapes: {'; '.join(reasons)}")

    def _runtime_settings(self) -> Any:
        """What contexts are made with. TensorRT-RTX compiles kernels for the shapes that come: at once, because a
        captured graph would keep for ever the stand-ins that run until a kernel is compiled in the background."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        specialisation = getattr(self.trt, "DynamicShapesKernelSpecializationStrategy", None)
        if specialisation is None:
            return strategy
        settings = self._engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(strategy)
        settings.dynamic_shapes_kernel_specialization_strategy = specialisation.EAGER
        self._compiled = settings.create_runtime_cache()
        if self._cache is not None:
            self._cache.load(self._compiled)
        settings.set_runtime_cache(self._compiled)  # contexts share what was compiled
        return settings

    def keep_compiled(self) -> None:
        """Writes what was compiled so far to its file, for the next start."""
        if self._cache is not None and self._compiled is not None:
            self._cache.save(self._compiled)

    # -- memory ------------------------------------------------------------------------------------------------
    def _new_kv(self, name: str, shape: tuple[int, ...]) -> DeviceArray:
        """Memory for K or V of a think pass: one block for all calls, since every call overwrites the last one's."""
        if name not in self._kv:
            most = 0
            for profile in range(self._engine.num_optimization_profiles):
                batch, tokens = self._engine.get_tensor_profile_shape("rope_cos", profile)[2][:2]
                most = max(most, batch * tokens)
            self._kv[name] = self.cuda.allocate((shape[0], most, *shape[3:]), self.dtypes[name])
        return DeviceArray.packed(self._kv[name].pointer, shape, self.dtypes[name])

    def pool(self, name: str, pool: Any) -> DeviceArray:
        """The pool in device memory: itself, or a copy of a host array, made anew at every call (for tests)."""
        if isinstance(pool, DeviceArray):
            if pool.dtype != self.dtypes[name]:
                raise EngineError(f"{self.step}: {name}: expected {self.dtypes[name]}, got {pool.dtype}")
            return pool
        held = self._copies.get(name)
        if held is None or held.shape != pool.shape:
            held = self._copies[name] = self.cuda.allocate(pool.shape, self.dtypes[name])
        bits = np.ascontiguousarray(to_bits(pool, held.dtype))
        self.cuda.copy(held.pointer, bits.ctypes.data, bits.nbytes)
        self.cuda.synchronize()
        return held

    def prepare(self, shapes: Shapes, bound: Mapping[str, DeviceArray], after: Copies = ()) -> Call:
        """A call of these inputs. `bound`: inputs and outputs that stay where they are; `after`: see `Call`."""
        profile = self._profile(shapes)
        context = self._engine.create_execution_context(self._settings)
        if context is None:
            raise EngineError(f"{self.step}: no context for profile {profile}; is the device's memory full?")
        context.set_device_memory(self._scratch.pointer, self._scratch_bytes)
        if not context.set_optimization_profile_async(profile, self.cuda.stream):
            raise EngineError(f"{self.step}: profile {profile} was refused")
        self.cuda.synchronize()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"{self.step}: {name}: {list(shape)} was refused by profile {profile}")
        if missing := context.infer_shapes():
            raise EngineError(f"{self.step}: shapes of {', '.join(missing)} are unknown in profile {profile}")
        slots = {n: Slot(s, self.dtypes[n], n in RAGGED) for n, s in shapes.items() if n not in bound}
        outputs = {t.name: tuple(context.get_tensor_shape(t.name)) for t in self._entry.outputs if t.name not in bound}
        kept = {n: self._new_kv(n, s) for n, s in outputs.items() if n in ON_DEVICE}
        returned = {n: Slot(s, self.dtypes[n]) for n, s in outputs.items() if n not in kept}
        return Call(self.step, context, self.cuda, slots, returned, bound, kept, after)

    def close(self) -> None:
        """Frees all device memory that the engine holds besides its weights."""
        while self._calls:
            self._calls.popitem()[1].close()
        for array in (self._scratch, *self._copies.values(), *self._kv.values()):
            self.cuda.free(array)
        self._copies.clear()
        self._kv.clear()


class PerformPlan(PlanEngine):
    """A plan of solver steps: `run` gives velocities, a `bank` adds them up on the device."""

    _banks: tuple[PlanBank, ...] = ()

    def run(self, inputs: Inputs) -> dict[str, Any]:
        still = np.zeros(len(inputs.get("tau", ())), np.float32)
        return super().run({"step": still, **inputs})

    def bank(self, pool: Pool, slots: int) -> PlanBank:
        """Room for `slots` units that are solved on the device over a pool of the device. Raises EngineError."""
        if "step" not in self.dtypes:
            raise EngineError(f"{self.step}: expected the input step, got none; rebuild the engines")
        pools = {"k_pool": self.pool("k_pool", pool.k), "v_pool": self.pool("v_pool", pool.v)}
        bank = PlanBank(self, self._limits, pools, slots)
        self._banks += (bank,)
        return bank

    def close(self) -> None:
        for bank in self._banks:
            bank.close()
        self._banks = ()
        super().close()


def load_engines(
    engine_dir: Path,
    steps: Sequence[str],
    cuda: CudaRuntime | None = None,
    performer_cuda: CudaRuntime | None = None,
    trusted_key: Path | None = None,
) -> EngineSet:
    """The engines of a role from a directory built for `tensorrt` or `tensorrt-rtx`.

    `performer_cuda`: of the performer's steps, where another thread calls them than the thinker's; None: the same.
    `trusted_key`: see `Manifest.verify`.
    Plans are native code and a plan for another GPU or version can take the process with it: each is probed in a
    process of its own first. Raises `ManifestError`, `EngineError` or `CudaError` with the reason.
    """
    manifest = Manifest.load(engine_dir)
    manifest.verify(engine_dir, steps=tuple(steps), trusted_key=trusted_key)
    if manifest.target not in TENSORRT_MODULES:
        raise EngineError(f"{engine_dir}: expected plans of {' or '.join(TENSORRT_MODULES)}, got {manifest.target}")
    name = TENSORRT_MODULES[manifest.target]
    try:
        trt = importlib.import_module(name)
    except ImportError as error:
        raise EngineError(
            f"{engine_dir}: expected the package {name}, which runs {manifest.target} plans: {error}"
        ) from None
    for step in steps:
        verdict = probe(engine_dir / manifest.engines[step].file, manifest.target)
        if not verdict.usable:
            raise EngineError(f"{step}: {verdict.text}; rebuild: {manifest.rebuild}")
    cuda = cuda or CudaRuntime()
    streams: dict[str, CudaRuntime] = dict.fromkeys(PERFORMER_STEPS, performer_cuda or cuda)
    limits = Limits(int(manifest.limits["max_batch"]), int(manifest.limits["max_pages"]))
    place = place_of(engine_dir, trusted_key)
    engines = {}
    for step, entry in manifest.engines.items():
        if step in steps:
            kind, cache = PerformPlan if step == "perform" else PlanEngine, CacheFile(place / f"{entry.file}.cache")
            plan = (engine_dir / entry.file).read_bytes()
            engines[step] = kind(step, plan, entry, limits, trt, streams.get(step, cuda), cache)
    return EngineSet.of(manifest, engine_dir, engines, limits.max_pages)


def _resolve(spec: TensorSpec, symbols: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(symbols[axis] if isinstance(axis, str) else axis for axis in spec.shape)
