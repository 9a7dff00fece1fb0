"""Loaders: files to opened models. Headers are read and checked here; weights are read when they are first needed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from comfy_api.latest import io

from ..wan_core.checkpoint.experts import ExpertPair, expert_candidates, open_experts
from ..wan_core.checkpoint.partner import find_partner
from ..wan_core.checkpoint.text_encoder import open_text_encoder
from ..wan_core.checkpoint.vae import open_vae
from ..wan_core.errors import InputError
from . import host
from .handles import ExpertsHandle, TextEncoderHandle, VaeHandle
from .io_types import WanExperts, WanTextEncoder, WanVae

# The low-noise choice for a folder that holds both experts.
SAME_FOLDER = "from the same folder"


class LoadExperts(io.ComfyNode):
    """Open the high-noise and the low-noise expert."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = host.model_choices("diffusion_models")
        return io.Schema(
            node_id="WanVelocityLoadExperts",
            display_name="Load Wan Experts",
            category="Wan Velocity",
            description="Opens both experts of a Wan 2.2 T2V-A14B model and checks that they belong together. Reads "
            "headers only; the sampler loads the weights.",
            search_aliases=[
                "load wan",
                "unet loader",
                "load diffusion model",
                "wan 2.2 model",
                "high noise",
                "low noise",
            ],
            inputs=[
                io.Combo.Input(
                    "high_noise",
                    options=[*files, *_folders_with_both(files)],
                    default=_first_with("high", files),
                    tooltip="The high-noise expert: a safetensors or GGUF file or a folder of shards in "
                    "diffusion_models. A folder that holds both experts, or a file whose partner is called like it, "
                    f"goes with the low-noise choice {SAME_FOLDER!r}.",
                ),
                io.Combo.Input(
                    "low_noise",
                    options=[*files, SAME_FOLDER],
                    default=_first_with("low", files),
                    tooltip="The low-noise expert of the same model. Swapped ones, or the same twice, are refused.",
                ),
            ],
            outputs=[WanExperts.Output(display_name="experts", tooltip="Both experts, opened and not yet loaded.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, high_noise: str | None = None, low_noise: str | None = None) -> bool | str:
        if high_noise is None or low_noise is None:
            return True
        return _problem(lambda: open_pair(high_noise, low_noise))

    @classmethod
    def fingerprint_inputs(cls, high_noise: str | None = None, low_noise: str | None = None) -> str:
        stamps = host.stamps("diffusion_models", [name for name in (high_noise, low_noise) if name != SAME_FOLDER])
        if high_noise is None or low_noise != SAME_FOLDER:
            return stamps
        partner = find_partner(host.model_path("diffusion_models", high_noise))
        return stamps + (repr(partner.stat().st_mtime_ns) if partner else "")

    @classmethod
    def execute(cls, high_noise: str, low_noise: str) -> io.NodeOutput:
        pair = open_pair(high_noise, low_noise)
        if pair.notes:
            host.say("\n".join(pair.notes), cls.hidden.unique_id)
        return io.NodeOutput(ExpertsHandle(pair))


class LoadTextEncoder(io.ComfyNode):
    """Open a UMT5-XXL text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanVelocityLoadTextEncoder",
            display_name="Load Wan Text Encoder",
            category="Wan Velocity",
            description="Opens a UMT5-XXL encoder with its tokenizer. Reads headers only.",
            search_aliases=["clip loader", "umt5", "t5 loader", "load text encoder"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=host.model_choices("text_encoders"),
                    tooltip="A safetensors, GGUF or .pth file in text_encoders: ComfyUI's umt5_xxl and most GGUF "
                    "files carry their tokenizer, others need it in a folder beside them.",
                )
            ],
            outputs=[WanTextEncoder.Output(display_name="text_encoder", tooltip="The text encoder, opened.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return True if file is None else _problem(lambda: open_text_encoder(host.model_path("text_encoders", file)))

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> str:
        return host.stamps("text_encoders", [file])

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(TextEncoderHandle(open_text_encoder(host.model_path("text_encoders", file))))


class LoadVae(io.ComfyNode):
    """Open a Wan 2.1 VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanVelocityLoadVAE",
            display_name="Load Wan VAE",
            category="Wan Velocity",
            description="Opens a Wan 2.1 VAE, the one of the 14B models. Reads headers only.",
            search_aliases=["vae loader", "load vae", "wan vae"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=host.model_choices("vae"),
                    tooltip="A safetensors or .pth file in vae, such as wan_2.1_vae. The Wan 2.2 VAE belongs to the 5B "
                    "model.",
                )
            ],
            outputs=[WanVae.Output(display_name="vae", tooltip="The VAE, opened.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return True if file is None else _problem(lambda: open_vae(host.model_path("vae", file)))

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> str:
        return host.stamps("vae", [file])

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(VaeHandle(open_vae(host.model_path("vae", file))))


def _problem(open_files: Callable[[], object]) -> bool | str:
    """Whether the files can be opened, else why not: told before anything runs."""
    try:
        open_files()
    except InputError as error:
        return str(error)
    return True


def open_pair(high_noise: str, low_noise: str) -> ExpertPair:
    high = host.model_path("diffusion_models", high_noise)
    return open_experts(high, None if low_noise == SAME_FOLDER else host.model_path("diffusion_models", low_noise))


def _folders_with_both(names: Sequence[str]) -> list[str]:
    """Folders above these files that hold one expert of each kind, the official layout among them."""
    folders = sorted({folder for name in names for folder in Path(name).parents} - {Path()})
    found = {str(folder): expert_candidates(host.model_path("diffusion_models", str(folder))) for folder in folders}
    return [name for name, experts in found.items() if all(len(paths) == 1 for paths in experts.values())]


def _first_with(word: str, names: Sequence[str]) -> str | None:
    """The first name that speaks of an expert, text to video before others: what the widgets start on."""
    speaking = [name for name in names if word in name.lower()]
    return next((name for name in speaking if "t2v" in name.lower()), next(iter(speaking), None))
