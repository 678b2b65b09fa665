"""Public codec files: what is written in the published layout loads; what does not fit is named, code is refused."""

import pickle
import re

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from families import FAMILIES, SMALL, codec
from safetensors.torch import save_file

from engine_builder.checkpoint import CheckpointError
from engine_builder.config import AudioConfig
from engine_builder.importers.codec import import_codec
from engine_builder.model.codecs.mdct import Mdct

pytestmark = pytest.mark.unit


def published(family, channels=SMALL):
    """A codec and the tensors of the file in which its family would publish it."""
    source = codec(family, channels)
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


def test_the_wan_vae_loads_as_its_authors_published_it(tmp_path):
    """Names of their module tree, which diffusers' own converter turns into what our file of today has."""
    source, tensors = published("wan21")
    inside = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    inside |= {"conv_shortcut": "shortcut"}
    outside = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
    old = {}
    for name, tensor in tensors.items():
        half, place, *rest = name.split(".")
        if half in outside:
            old[f"{outside[half]}.{place}"] = tensor
            continue
        if place == "conv_in":
            words = ["conv1"]
        elif place in ("norm_out", "conv_out"):
            words = ["head", "0" if place == "norm_out" else "2"]
        elif place == "mid_block":
            words = ["middle", str(2 * int(rest[1])) if rest[0] == "resnets" else "1"]
            rest = rest[2:]
        elif place == "down_blocks":
            words, rest = ["downsamples", rest[0]], rest[1:]
        else:
            number = 4 * int(rest[0]) + (int(rest[2]) if rest[1] == "resnets" else 3)
            words, rest = ["upsamples", str(number)], rest[3:]
        old[".".join([half, *words, *(inside.get(word, word) for word in rest)])] = tensor
    converted = convert_wan_vae_to_diffusers(dict(old))
    assert {n: id(t) for n, t in converted.items()} == {n: id(t) for n, t in tensors.items()}
    torch.save(old, tmp_path / "Wan2.1_VAE.pth")
    target = blank("wan21")
    import_codec(target, tmp_path / "Wan2.1_VAE.pth")
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


def test_mimi_loads_as_it_was_trained(tmp_path):
    """Convolutions in wrappers, one of them with weight normalisation, and what only the training needed."""
    source, tensors = published("mimi-vae")
    old = {}
    for name, tensor in tensors.items():
        if not name.startswith("mimi."):
            continue
        name = name.removeprefix("mimi.").replace("in_proj.weight", "in_proj_weight")
        name = re.sub(r"\.(conv|convtr)\.(weight|bias)$", r".\1.\1.\2", name)
        old["model." + name] = tensor
    plain = "model.encoder.model.0.conv.conv.weight"
    weight = old.pop(plain)
    old |= {f"{plain}_v": 3 * weight, f"{plain}_g": weight.flatten(1).norm(dim=1).view(-1, 1, 1)}
    for left in ("wavlm_proj.weight", "model.quantizer.vq.layers.0._codebook.embedding_sum", "quantizer.logvar_param"):
        old[left] = torch.ones(2)
    save_file(old, tmp_path / "old.safetensors")
    target = blank("mimi-vae")
    target.latent_mean.copy_(source.latent_mean)  # such a file has none
    import_codec(target, tmp_path / "old.safetensors")
    for name, tensor in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], tensor, atol=1e-6, rtol=1e-6, msg=name)


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
