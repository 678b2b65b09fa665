"""Public codec files: what is written in the published layout loads; what does not fit is named, code is refused."""

import pickle

import pytest
import torch
from families import FAMILIES, codec
from safetensors.torch import save_file

from engine_builder.checkpoint import CheckpointError
from engine_builder.config import AudioConfig
from engine_builder.importers.codec import import_codec
from engine_builder.model.codecs.mdct import Mdct

pytestmark = pytest.mark.unit


def published(family):
    source = codec(family)
    tensors = {n: t.clone() for n, t in source.state_dict().items() if not n.startswith("latent_")}
    if family == "mimi-vae":
        tensors = {f"mimi.{n}": t for n, t in tensors.items()}
        tensors |= {"flow_lm.emb_mean": source.latent_mean, "flow_lm.emb_std": source.latent_scale}
        tensors["flow_lm.input_linear.weight"] = torch.ones(2, 2)
    return source, tensors


def blank(family):
    target = codec(family)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    if family == "mimi-vae":
        target.latent_mean.zero_()
    return target


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["safetensors", "directory", "pth"])
def test_a_published_file_loads(family, kind, tmp_path):
    source, tensors = published(family)
    path = tmp_path / {"safetensors": "a.safetensors", "directory": "model.safetensors", "pth": "a.pth"}[kind]
    torch.save(tensors, path) if kind == "pth" else save_file(tensors, path)
    target = blank(family)
    import_codec(target, tmp_path if kind == "directory" else path)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


def test_everything_that_does_not_fit_is_named_at_once(tmp_path):
    _, tensors = published("taehv")
    tensors["decoder.renamed.weight"] = tensors.pop("decoder.1.weight")
    tensors["encoder.0.bias"] = torch.zeros(7)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as error:
        import_codec(blank("taehv"), tmp_path / "a.safetensors")
    for part in ("extra decoder.renamed.weight", "missing decoder.1.weight", "misshapen encoder.0.bias: expected [4]"):
        assert part in str(error.value)


class Trap:
    def __reduce__(self):
        return (open, (str(Trap.path), "w"))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    Trap.path = tmp_path / "ran"
    for name, write in (("a.pth", lambda f: torch.save({"x": Trap()}, f)), ("b.pth", lambda f: pickle.dump(Trap(), f))):
        with (tmp_path / name).open("wb") as file:
            write(file)
        with pytest.raises(CheckpointError, match="expected tensors and nothing else"):
            import_codec(blank("taehv"), tmp_path / name)
    assert not Trap.path.exists()


def test_the_tutors_codec_has_no_public_weights(tmp_path):
    with pytest.raises(CheckpointError, match="has no public weights"):
        import_codec(Mdct(AudioConfig()), tmp_path)
