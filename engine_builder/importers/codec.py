"""Takes the weights of a codec family from its public file, by the tensor names that the family publishes, or those
under which it went round before (`codec_names`).

safetensors, or a .pth of tensors alone: a pickle that asks for anything else is refused before it runs.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoint import CheckpointError, copy_tensors
from ..model.codecs import Codec, PublishedCodec
from ..model.codecs.taehv import TimeGrow
from .codec_names import today

NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # looked for in a directory
_OWN = ("latent_mean", "latent_scale")
_POCKET = {"flow_lm.emb_mean": "latent_mean", "flow_lm.emb_std": "latent_scale"}


def import_codec(codec: Codec, source: Path) -> None:
    """Copies a public file into a codec. `CheckpointError` names every missing, extra and misshapen tensor."""
    if not isinstance(codec, PublishedCodec):
        raise CheckpointError(f"{source}: the codec of this checkpoint has no public weights; its config names another")
    copy_tensors(codec, _named(codec, today(_read(source))), str(source))


def _read(source: Path) -> dict[str, Tensor]:
    file = source
    if source.is_dir():
        found = [source / name for name in NAMES if (source / name).is_file()]
        if len(found) != 1:
            raise CheckpointError(f"{source}: expected one of {', '.join(NAMES)}, found {len(found)}")
        file = found[0]
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file}: expected tensors and nothing else ({str(error).splitlines()[0]})") from None
    except Exception as error:  # safetensors has exceptions of its own
        raise CheckpointError(f"{file}: cannot be read ({error})") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"{file}: expected a dictionary of tensors, got {type(tensors).__name__}")
    return tensors


def _named(codec: PublishedCodec, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the codec; a bundle of Pocket TTS holds a language model as well, which is left."""
    bundle = any(name.startswith("mimi.") for name in tensors)
    given = dict(tensors)
    if bundle:
        given = {name.removeprefix("mimi."): t for name, t in tensors.items() if name.startswith("mimi.")}
        given |= {own: tensors[name] for name, own in _POCKET.items() if name in tensors}
    for name in _OWN:  # where the file has none, those of the family stay
        given.setdefault(name, codec.get_buffer(name).clone())
    for name, module in codec.named_modules():
        key = f"{name}.conv.weight"
        if isinstance(module, TimeGrow) and key in given:
            # Files for more frames hold those of the last ones at the end.
            given[key] = given[key][-module.conv.out_channels :]
    yield from given.items()
