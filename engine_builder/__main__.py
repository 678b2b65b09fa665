"""`python -m engine_builder`: make a checkpoint, build engines from it, sign them, check them."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .manifest import PRECISIONS, TARGETS
from .options import real, seed, whole
from .presets import PRESETS, preset

EXAMPLES = """\
examples:
  python -m engine_builder init --preset tiny --seed 0 build/checkpoints/tiny
  python -m engine_builder import-qwen3 ~/Qwen3-0.6B build/checkpoints/qwen --preset v0.1-0.6b
  python -m engine_builder import-codec build/checkpoints/qwen --audio pocket-tts/ --video taew2_1.safetensors
  python -m engine_builder codec-check --audio in.wav --video in.mp4 build/checkpoints/qwen build/runs/codecs
  python -m engine_builder build build/checkpoints/tiny build/engines/tiny
  python -m engine_builder build build/checkpoints/tiny build/engines/rtx --target tensorrt-rtx --compute-capability 8.9
  python -m engine_builder keygen release.key
  python -m engine_builder sign build/engines/tiny --key release.key
  python -m engine_builder verify build/engines/tiny --trusted-key release.key.pub
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m engine_builder",
        description="Turns a checkpoint (config.json + safetensors) into engines of the four step functions.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="write a checkpoint with random weights")
    init.add_argument("directory", type=Path)
    init.add_argument("--preset", default="tiny", choices=list(PRESETS), help="model geometry (default: tiny)")
    init.add_argument("--seed", type=seed, default=0, help="seed of the weights (default: 0)")
    init.add_argument(
        "--seed-only", action="store_true", help="write no weights: torch-cuda draws them on the device that serves"
    )

    qwen = commands.add_parser("import-qwen3", help="take the backbone from a Hugging Face Qwen3 checkpoint")
    qwen.add_argument("source", type=Path, metavar="HF_DIR")
    qwen.add_argument("directory", type=Path)
    qwen.add_argument("--preset", default="v0.1-0.6b", choices=list(PRESETS), help="audio and video geometry")
    qwen.add_argument("--seed", type=seed, default=0, help="seed of everything that is not the backbone")

    codec = commands.add_parser("import-codec", help="take the weights of codecs from their public files")
    codec.add_argument("checkpoint", type=Path, help="changed in place; its config names the codec families")
    codec.add_argument("--audio", type=Path, metavar="DIR_OR_FILE", help="safetensors, or a .pth of tensors alone")
    codec.add_argument("--video", type=Path, metavar="DIR_OR_FILE", help="likewise")

    check = commands.add_parser("codec-check", help="media through the codecs, unit by unit: look, listen, cost")
    check.add_argument("checkpoint", type=Path)
    check.add_argument("directory", type=Path, help="for sound, pictures (original | decoded) and report.json")
    check.add_argument("--audio", type=Path, metavar="FILE", help="what FFmpeg reads")
    check.add_argument("--video", type=Path, metavar="FILE", help="likewise")
    check.add_argument("--seconds", type=real(0.1, 86400), default=10.0, help="of each, at most (default: %(default)g)")

    build = commands.add_parser("build", help="build engines and their manifest")
    build.add_argument("checkpoint", type=Path)
    build.add_argument("directory", type=Path)
    build.add_argument(
        "--target",
        default="onnxruntime",
        choices=TARGETS,
        help="onnxruntime: any CPU (default); tensorrt: this machine's NVIDIA GPU; tensorrt-rtx: ahead of time; "
        "torch-cuda: PyTorch with a paged attention kernel, any NVIDIA GPU",
    )
    build.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the matrices and of the KV pool (default: float32 for onnxruntime, bfloat16 for GPUs; fp8: "
        "torch-cuda, matrices of the layers with a scale a row, the rest bfloat16)",
    )
    build.add_argument("--timing-cache", type=Path, metavar="FILE", help="kept between builds (tensorrt only)")
    build.add_argument("--compute-capability", metavar="X.Y", help="GPU to compile for, e.g. 8.9 (tensorrt-rtx only)")
    build.add_argument("--max-batch", type=whole(1), default=8, help="sessions in one engine call (default: 8)")
    build.add_argument(
        "--max-pages",
        type=whole(1),
        help="history pages of one session (default: what the server's default retention needs)",
    )
    build.add_argument(
        "--pool-pages",
        type=whole(1),
        help="pages of the whole KV pool (default: at least 2048; on GPUs max-batch sessions)",
    )
    build.add_argument("--page-tokens", type=whole(1), default=16, help="tokens in one page (default: 16)")

    keygen = commands.add_parser("keygen", help="make a pair of keys to sign engines with (or: minisign -GW)")
    keygen.add_argument("key", type=Path, help="file of the secret key; the public one goes to KEY.pub")

    sign = commands.add_parser("sign", help="check an engine directory and sign its manifest")
    sign.add_argument("directory", type=Path)
    sign.add_argument("--key", type=Path, required=True, help="secret key, in the format of minisign")

    verify = commands.add_parser("verify", help="check an engine directory against its manifest")
    verify.add_argument("directory", type=Path)
    verify.add_argument("--target", help="also require this target")
    verify.add_argument("--trusted-key", type=Path, metavar="FILE", help="also require a signature by this public key")
    return top


def main(argv: list[str] | None = None) -> int:
    """Runs one command; errors the user can mend go to stderr without a traceback and give exit code 1."""
    args = parser().parse_args(argv)
    try:
        return _COMMANDS[args.command](args)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was changed", file=sys.stderr)
        return 130


def _init(args: argparse.Namespace) -> int:
    from .checkpoint import TOKENIZER, random_model, save_checkpoint, save_seed
    from .tokenizer import write_tiny_tokenizer

    config = preset(args.preset)
    note = f"random (seed {args.seed}), not trained: speaks and shows noise"
    if args.seed_only:
        save_seed(config, args.seed, args.directory, note)
        write_tiny_tokenizer(args.directory / TOKENIZER, config.language)
        print(f"{args.directory}: {config.name}, random weights that are drawn when they are needed (seed {args.seed})")
        return 0
    model = random_model(config, args.seed)
    save_checkpoint(model, args.directory, note=note)
    write_tiny_tokenizer(args.directory / TOKENIZER, config.language)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.directory}: {config.name}, {parameters / 1e6:.1f} M parameters, random weights (seed {args.seed})")
    return 0


def _import_qwen3(args: argparse.Namespace) -> int:
    from .checkpoint import save_checkpoint
    from .importers.qwen3 import fp8_note, import_qwen3

    model, tokenizer = import_qwen3(args.source, preset(args.preset), args.seed)
    fp8 = fp8_note(args.source)
    origin = f"{args.source.name} ({fp8})" if fp8 else args.source.name
    note = f"backbone from {origin}; audio, video and tau parts random (seed {args.seed}), not trained"
    save_checkpoint(model, args.directory, tokenizer, note=note)
    print(f"{args.directory}: backbone of {args.source} with the audio and video geometry of {args.preset}")
    if fp8:
        print(f"  its weights were {fp8}: as exact as FP8 was")
    return 0


def _import_codec(args: argparse.Namespace) -> int:
    from .checkpoint import load_checkpoint, read_weights_note, save_checkpoint
    from .importers.codec import import_codec

    sources = {"audio": args.audio, "video": args.video}
    given = {stream: source for stream, source in sources.items() if source is not None}
    if not given:
        raise ValueError("import-codec: expected --audio, --video or both, got neither")
    model = load_checkpoint(args.checkpoint)
    for stream, source in given.items():
        import_codec(getattr(model, f"{stream}_codec"), source)
    origin = ", ".join(f"{stream} codec from {source.name}" for stream, source in given.items())
    save_checkpoint(model, args.checkpoint, note=f"{read_weights_note(args.checkpoint)}; {origin}")
    print(f"{args.checkpoint}: {origin}")
    return 0


def _codec_check(args: argparse.Namespace) -> int:
    from .importers.codec_check import check

    if args.audio is None and args.video is None:
        raise ValueError("codec-check: expected --audio, --video or both, got neither")
    for result in check(args.checkpoint, args.audio, args.video, args.directory, args.seconds):
        print(result.describe())
    print(args.directory)
    return 0


def _build(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from .build import BuildOptions, build_engines
    from .manifest import ENCODE, STEPS

    options = BuildOptions(
        target=args.target,
        compute_capability=args.compute_capability,
        precision=args.precision,
        timing_cache=args.timing_cache,
        max_batch=args.max_batch,
        max_pages=args.max_pages,
        pool_pages=args.pool_pages,
        page_tokens=args.page_tokens,
    )
    started, steps = time.monotonic(), (*STEPS, ENCODE)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task("load checkpoint", total=None)

        def progress(step: str, what: str) -> None:
            text = f"[{steps.index(step) + 1}/{len(steps)}] {step}: {what}"
            display.update(task, description=text)
            if not display.console.is_terminal:
                print(text, file=sys.stderr, flush=True)

        manifest = build_engines(args.checkpoint, args.directory, options, progress)
    size = sum((args.directory / file).stat().st_size for file in {e.file for e in manifest.engines.values()})
    print(
        f"{args.directory}: {manifest.model.name} for {manifest.target}"
        + (f" (compute capability {manifest.compute_capability})" if manifest.compute_capability else "")
        + f", {len(manifest.engines)} engines, {size / 1e6:.0f} MB, {time.monotonic() - started:.0f} s"
    )
    return 0


def _keygen(args: argparse.Namespace) -> int:
    from .signature import make_keys

    print(f"{args.key}: keep it secret; whoever has {make_keys(args.key)} can check what it signed")
    return 0


def _sign(args: argparse.Namespace) -> int:
    from .build import verify_engines
    from .manifest import MANIFEST
    from .signature import sign

    verify_engines(args.directory)
    print(f"{args.directory}: intact, signed: {sign(args.directory / MANIFEST, args.key)}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from .build import verify_engines

    manifest = verify_engines(args.directory, args.target, args.trusted_key)
    libraries = ", ".join(f"{name} {version}" for name, version in manifest.libraries.items())
    signed = "" if args.trusted_key is None else f", signed by {args.trusted_key}"
    print(f"{args.directory}: intact{signed}. {manifest.model.name} for {manifest.target}, weights {manifest.weights}")
    print(f"  built with {libraries}")
    return 0


_COMMANDS = {
    "init": _init,
    "import-qwen3": _import_qwen3,
    "import-codec": _import_codec,
    "codec-check": _codec_check,
    "build": _build,
    "keygen": _keygen,
    "sign": _sign,
    "verify": _verify,
}


if __name__ == "__main__":
    raise SystemExit(main())
