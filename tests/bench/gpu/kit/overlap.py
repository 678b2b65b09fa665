"""Thinker and performer on one GPU: alone, on two streams of one process, and in two processes that share the weights.

    python overlap.py OUT [--preset v0.1-8b] [--smoke]

A tick is one solver step of one unit, a thought one block and two slots. `overlap`: time of the work done if each had
been alone, over the time it took together; 1 is taking turns, the goal is 1.3. The second process maps the weights of
the first through CUDA IPC, without MPS. Writes OUT/overlap.json after each part, memory of each included.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from facts import Facts, stage_options
from gpu_engines import SLOTS, Setting
from gpu_plan import config_of
from gpu_work import history_tokens

from engine_builder.config import ModelConfig
from triton_models.gpu.cuda.buckets import Limits
from triton_models.gpu.torch_cuda.backbone import Backbone
from triton_models.gpu.torch_cuda.captured import Lane
from triton_models.gpu.torch_cuda.solver_bank import SolverBank
from triton_models.gpu.torch_cuda.steps import ThinkEngine, device_array
from triton_models.gpu.torch_cuda.weights import BackboneWeights
from triton_models.runtime.messages import HistoryView

Call = Callable[[], Any]
Times = dict[str, list[float]]


def thought(setting: Setting, weights: BackboneWeights) -> Call:
    """Thinks one unit and waits for it, on a stream that is served first."""
    engine = ThinkEngine(Backbone(weights), Limits(1, setting.pages), Lane.on(setting.device, -1))
    pools = {"k_pool": device_array(setting.k_pool), "v_pool": device_array(setting.v_pool)}
    calls = []
    for step in ("think", "slot"):
        inputs = {**setting.inputs(step, 1), **pools}
        engine.run(inputs)
        calls.append(engine.call_for(inputs)[0])

    def unit() -> None:
        for call in (calls[0], *[calls[1]] * SLOTS):
            call.relaunch()
        calls[1].wait(1)

    return unit


def tick(setting: Setting, weights: BackboneWeights) -> Call:
    """One solver step of one unit, waited for."""
    limits = Limits(1, setting.pages)
    bank = SolverBank(Backbone(weights), limits, Lane.on(setting.device), setting.k_pool, setting.v_pool, 1)
    own = setting.inputs("perform", 1)
    x = [own[name][0] for name in ("x_video", "x_audio", "rope_cos", "rope_sin")]
    slot = bank.put(*x, HistoryView(own["page_table"][0], own["page_range"][0]))
    return lambda: bank.tick([slot], [0.5], [0.0])


def repeat(call: Call, seconds: float) -> list[float]:
    """Milliseconds of each call, for so long."""
    call()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def summary(times: Times) -> dict[str, Any]:
    return {
        name: {"ms": round(statistics.median(t), 3), "max": round(max(t), 3), "calls": len(t)}
        for name, t in times.items()
    }


def together(alone: dict[str, Any], times: Times, seconds: float) -> dict[str, Any]:
    found = summary(times)
    work = sum(part["calls"] * alone[name]["ms"] for name, part in found.items())
    return {**found, "overlap": round(work / 1e3 / seconds, 3)}


def used_gib(device: torch.device) -> float:
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 2**30


def second_process(
    config: ModelConfig,
    place: tuple[Any, ...],
    tensors: dict[str, Any],
    seconds: float,
    ready: Any,
    go: Any,
    answer: Any,
) -> None:
    """The thinker in a process of its own, on the first one's weights."""
    device, dtype, history = place
    before = used_gib(device)
    setting = Setting(config, device, dtype, 1, history)  # its pools must outlive the call, which has their address
    call = thought(setting, BackboneWeights(config, tensors))
    taken = used_gib(device) - before
    ready.set()
    go.wait()
    answer.put((repeat(call, seconds), taken))


def main() -> None:
    args = stage_options()
    seconds = 0.2 if args.smoke else 2.0
    config = config_of(args.preset, args.smoke)
    device = torch.device("cpu" if args.smoke else "cuda:0")
    dtype = torch.float32 if args.smoke else torch.bfloat16
    history = history_tokens(config, 0.5 if args.smoke else 8.0, SLOTS)
    first = {"preset": args.preset, "history": history, "gib before": round(used_gib(device), 2)}
    save = Facts(args.out / "overlap.json", **first).save
    weights = BackboneWeights.random(config, device, str(dtype).removeprefix("torch."), 0)
    save("weights gib", round(sum(t.nbytes for t in weights.tensors.values()) / 2**30, 2))
    setting = Setting(config, device, dtype, 1, history)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    calls = {"thought": thought(setting, weights), "tick": tick(setting, weights)}
    save("one process gib", round(used_gib(device), 2))
    alone = summary({part: repeat(call, seconds / 2) for part, call in calls.items()})
    save("alone", alone)

    times: Times = {}
    threads = [
        threading.Thread(target=lambda part=part, call=call: times.update({part: repeat(call, seconds)}))
        for part, call in calls.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    save("two streams", together(alone, times, seconds))

    context = torch.multiprocessing.get_context("spawn")
    ready, go, answer = context.Event(), context.Event(), context.Queue()
    shared = (config, (device, dtype, history), weights.tensors, seconds, ready, go, answer)
    process = context.Process(target=second_process, args=shared)
    process.start()
    if not ready.wait(120):
        process.kill()
        raise SystemExit("the second process did not get ready")
    go.set()
    own = repeat(calls["tick"], seconds)
    theirs, taken = answer.get(timeout=60)
    process.join(30)
    save("two processes", together(alone, {"tick": own, "thought": theirs}, seconds))
    save("second process gib", round(taken, 2))


if __name__ == "__main__":
    main()
