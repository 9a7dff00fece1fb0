"""The miniature with random weights: its files, their names and sizes, and that its numbers behave like a model's."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from miniature import vocabulary
from miniature.__main__ import main
from miniature.architecture import TEXT_ENCODER, TRANSFORMER, VAE
from miniature.weights import transformer_table, vae_table
from miniature.write import hugging_face_name, write_miniature, write_safetensors
from wan_core.attention.backends.sdpa import BACKENDS
from wan_core.checkpoint.text_encoder import open_text_encoder
from wan_core.errors import InputError
from wan_core.models.t5 import Umt5Encoder, encode_prompts
from wan_core.models.tokenizer import Tokenizer
from wan_core.models.transformer import WanTransformer
from wan_core.models.vae21 import WanVae
from wan_core.specs import LATENT_MEAN, LATENT_STD, T2V_A14B_TRANSFORMER, WAN21_VAE, Expert

PROMPTS = ["a small red circle moves left on a blue background", "two large green squares fall slowly", ""]
EXPERT_FILES = {expert: f"diffusion_models/wan_velocity_mini_{expert.value}_noise.safetensors" for expert in Expert}
ENCODER_FILE = "text_encoders/wan_velocity_mini_text_encoder.safetensors"
VAE_FILE = "vae/wan_velocity_mini_vae.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("miniature")
    write_miniature(path, layout="both")
    return path


def files_below(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def filled(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    module.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def experts(folder: Path) -> dict[Expert, WanTransformer]:
    attend = BACKENDS[-1].load()
    with torch.device("meta"):
        models = {expert: WanTransformer(TRANSFORMER, attend=attend, cross_attend=attend) for expert in Expert}
    return {
        expert: filled(model, load_file(folder / "comfyui" / EXPERT_FILES[expert])) for expert, model in models.items()
    }


@pytest.fixture(scope="module")
def context(folder: Path) -> Tensor:
    with torch.device("meta"):
        encoder = Umt5Encoder(TEXT_ENCODER)
    filled(encoder, load_file(folder / "official" / "models_t5_umt5-xxl-enc-bf16.safetensors"))
    source = open_text_encoder(folder / "official" / "models_t5_umt5-xxl-enc-bf16.safetensors")
    return encode_prompts(encoder, Tokenizer.from_bytes(source.vocabulary()), PROMPTS)


@pytest.fixture(scope="module")
def vae(folder: Path) -> WanVae:
    with torch.device("meta"):
        model = WanVae(VAE)
    return filled(model, load_file(folder / "comfyui" / VAE_FILE))


def test_layouts_have_the_expected_files(folder: Path) -> None:
    assert set(files_below(folder / "comfyui")) == {*EXPERT_FILES.values(), ENCODER_FILE, VAE_FILE}
    shards = {
        f"{expert.value}_noise_model/{name}"
        for expert in Expert
        for name in (
            "config.json",
            "diffusion_pytorch_model.safetensors.index.json",
            "diffusion_pytorch_model-00001-of-00002.safetensors",
            "diffusion_pytorch_model-00002-of-00002.safetensors",
        )
    }
    others = {"models_t5_umt5-xxl-enc-bf16.safetensors", "Wan2.1_VAE.safetensors", "google/umt5-xxl/spiece.model"}
    assert set(files_below(folder / "official")) == shards | others


@pytest.mark.parametrize("layout", ["comfyui", "official"])
def test_it_is_small_enough_to_ship(folder: Path, layout: str) -> None:
    sizes = [path.stat().st_size for path in files_below(folder / layout).values()]
    assert max(sizes) <= 16e6
    assert sum(sizes) <= 48e6


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(folder: Path, tmp_path: Path) -> None:
    write_miniature(tmp_path / "again")
    first, again = files_below(folder / "comfyui"), files_below(tmp_path / "again")
    assert first.keys() == again.keys()
    assert all(first[name].read_bytes() == again[name].read_bytes() for name in first)
    write_miniature(tmp_path / "other", seed=1)
    other = load_file(tmp_path / "other" / VAE_FILE)
    assert not torch.equal(other["conv1.weight"], load_file(first[VAE_FILE])["conv1.weight"])


def test_both_layouts_hold_the_same_weights(folder: Path) -> None:
    official, comfyui = folder / "official", folder / "comfyui"
    for expert in Expert:
        parts = sorted((official / f"{expert.value}_noise_model").glob("*.safetensors"))
        sharded = {name: tensor for part in parts for name, tensor in load_file(part).items()}
        assert same(sharded, load_file(comfyui / EXPERT_FILES[expert]))
    assert same(load_file(official / "Wan2.1_VAE.safetensors"), load_file(comfyui / VAE_FILE))
    encoder = load_file(comfyui / ENCODER_FILE)
    spiece = encoder.pop("spiece_model")
    assert spiece.numpy().tobytes() == (official / "google" / "umt5-xxl" / "spiece.model").read_bytes()
    theirs = load_file(official / "models_t5_umt5-xxl-enc-bf16.safetensors")
    assert same({hugging_face_name(name): tensor for name, tensor in theirs.items()}, encoder)


@pytest.mark.parametrize("expert", Expert)
def test_the_index_says_where_every_tensor_is(folder: Path, expert: Expert) -> None:
    place = folder / "official" / f"{expert.value}_noise_model"
    index = json.loads((place / "diffusion_pytorch_model.safetensors.index.json").read_text())
    found = {name: part.name for part in place.glob("*.safetensors") for name in load_file(part)}
    assert index["weight_map"] == found
    whole = load_file(folder / "comfyui" / EXPERT_FILES[expert])
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())


@pytest.mark.parametrize("expert", Expert)
def test_metadata_names_the_expert_and_serves_the_native_loader(folder: Path, expert: Expert) -> None:
    for path in (
        folder / "comfyui" / EXPERT_FILES[expert],
        folder / "official" / f"{expert.value}_noise_model" / "diffusion_pytorch_model-00001-of-00002.safetensors",
    ):
        metadata = metadata_of(path)
        assert metadata["wan_velocity.expert"] == expert.value
        assert metadata["license"] == "Apache-2.0"
        assert json.loads(metadata["config"]) == {"transformer": {"num_heads": 2, "text_dim": 256}}
    config = json.loads((folder / "official" / f"{expert.value}_noise_model" / "config.json").read_text())
    assert (config["model_type"], config["dim"], config["num_layers"], config["in_dim"]) == ("t2v", 256, 7, 16)


def test_the_tables_also_describe_the_released_model() -> None:
    transformer = transformer_table(T2V_A14B_TRANSFORMER)
    assert len(transformer) == 1095
    assert sum(torch.Size(draw.shape).numel() for draw in transformer.values()) == T2V_A14B_TRANSFORMER.num_parameters
    with torch.device("meta"):
        released = {name: tuple(tensor.shape) for name, tensor in WanVae(WAN21_VAE).state_dict().items()}
    assert {name: draw.shape for name, draw in vae_table(WAN21_VAE).items()} == released
    assert len(released) == 194


def test_files_are_read_back_as_written_whatever_the_dtypes(tmp_path: Path) -> None:
    tensors = {
        "bytes": torch.arange(7, dtype=torch.uint8),
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "full": torch.randn(2, 1, 1),
        "view": torch.randn(4, 6).t(),
    }
    write_safetensors(tmp_path / "file.safetensors", tensors, {"b": "\u00e9", "a": '"'})
    assert same(load_file(tmp_path / "file.safetensors"), tensors)
    assert metadata_of(tmp_path / "file.safetensors") == {"a": '"', "b": "\u00e9"}


@torch.no_grad()
def test_velocity_is_of_unit_size_and_depends_on_everything(experts, context: Tensor) -> None:
    latent = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def velocity(expert: Expert, row: int = 0, timestep: float = 900.0, of: Tensor = latent) -> Tensor:
        model = experts[expert]
        return model(of, torch.tensor([timestep]), model.prepare_text(context[row : row + 1]))

    for expert in Expert:
        base = velocity(expert)
        assert 0.7 < base.std() < 1.5
        assert relative(velocity(expert, row=1), base) > 0.2
        assert relative(velocity(expert, row=2), base) > 0.2
        assert relative(velocity(expert, timestep=700.0), base) > 0.1
        assert relative(velocity(expert.other), base) > 0.5
        # Tokens hear of each other: another first frame changes the last.
        changed = torch.cat((latent[:, :, 2:], latent[:, :, 1:]), dim=2)
        assert relative(velocity(expert, of=changed)[:, :, -1], base[:, :, -1]) > 0.05


@torch.no_grad()
def test_decoded_noise_has_contrast(vae: WanVae) -> None:
    noise = torch.randn(1, 16, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    scale, offset = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (LATENT_STD, LATENT_MEAN))
    for latent in (noise, noise * scale + offset):
        video = vae.decode(latent)
        assert video.shape == (1, 3, 5, 128, 128)
        assert 0.2 < video.std() < 0.6
        assert (video.abs() > 0.99).float().mean() < 0.1
        assert relative(video[:, :, 1], video[:, :, 0]) > 0.05


@torch.no_grad()
def test_encoding_is_finite_and_depends_on_the_video(vae: WanVae) -> None:
    video = torch.rand(1, 3, 5, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = vae.encode(video)
    assert 0.2 < latent.std() < 3.0
    assert relative(vae.encode(video.roll(8, dims=-1)), latent) > 0.2


def relative(value: Tensor, base: Tensor) -> float:
    return ((value - base).norm() / base.norm()).item()


def test_words_are_whole_pieces_and_nothing_is_unknown() -> None:
    tokenizer = Tokenizer.from_bytes(vocabulary.train_vocabulary(TEXT_ENCODER.vocab_size))
    assert tokenizer.vocab_size == TEXT_ENCODER.vocab_size
    words = (*vocabulary.COLOURS, *vocabulary.SHAPES, *vocabulary.DIRECTIONS, *vocabulary.MOTIONS, *vocabulary.CAMERA)
    assert [word for word in words if len(tokenizer.encode(word).ids) != 2] == []
    unknown = 2
    for text in ("\u4e00\u53ea\u732b \N{BALLOON}", "Zyx-Q!? @#%", "na\u00efve \u0416\u05d0\u0639"):
        assert unknown not in tokenizer.encode(text).ids


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'official'"):
        write_miniature(tmp_path, layout="oficial")


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["miniature", str(tmp_path / "out"), "--layout", "official", "--seed", "3", "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    assert "Wan2.1_VAE.safetensors" in capsys.readouterr().out
    tensors = load_file(tmp_path / "out" / "Wan2.1_VAE.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert metadata_of(tmp_path / "out" / "Wan2.1_VAE.safetensors")["wan_velocity.origin"] == "random, seed 3"
