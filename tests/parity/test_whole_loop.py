"""From prompt to pixels against a straight transcription of the reference's loop over other people's modules.

The transcription follows `generate` of Wan-Video/Wan2.2 (`wan/text2video.py`) line by line: noise, timesteps, expert by
timestep, two passes, guidance, solver, decode. Its modules are diffusers' transformer, VAE and UniPC and transformers'
UMT5, all loaded from the same miniature files by their own names. Float32 on the CPU.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor

from miniature.architecture import TEXT_ENCODER, TRANSFORMER, VAE
from miniature.write import PREFIX, write_miniature
from tests.parity.diffusers_models import make_transformer
from tests.parity.diffusers_names import to_diffusers
from tests.parity.diffusers_vae_names import to_diffusers as to_diffusers_vae
from tests.parity.transformers_models import make_text_encoder
from wan_core.checkpoint.find import find_model
from wan_core.models.tokenizer import Tokenizer
from wan_core.pipeline import RunPlan, WanPipeline
from wan_core.profiles import OptimizationProfile, preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.report import Report
from wan_core.sample import Conditioning
from wan_core.specs import LATENT_MEAN, LATENT_STD

PROMPT, NEGATIVE = "two red circles moving right over a blue background", "a green square"
SIZE = VideoSize(width=64, height=48, num_frames=9)
STEPS, SHIFT, BOUNDARY, SEED = 6, 5.0, 0.875, 1234
GUIDANCE = {"high": 4.0, "low": 3.0}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniature")
    write_miniature(folder, layout="comfyui", dtype=torch.float32)
    return folder


def request(**changes: object) -> SampleRequest:
    chosen = recipe("official").with_changes(num_steps=STEPS, shift=SHIFT, boundary=BOUNDARY)
    return SampleRequest(recipe=chosen, seed=SEED, **changes)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


class Run:
    """A pipeline with a profile, and its conditioning."""

    def __init__(self, folder: Path, profile: OptimizationProfile) -> None:
        self.pipeline = WanPipeline(find_model(folder), profile, device="cpu")

    def plan(self, **changes: object) -> RunPlan:
        return self.pipeline.plan(request(**changes), SIZE)

    def conditioning(self) -> Conditioning:
        return self.pipeline.encode(self.plan(), PROMPT, NEGATIVE, report=Report())

    def latent(self, **changes: object) -> Tensor:
        return self.pipeline.sample(self.plan(**changes), self.conditioning()).latent

    def video(self, latent: Tensor) -> Tensor:
        return torch.cat(list(self.pipeline.decode_chunks(self.plan(), latent)), dim=2)


@pytest.fixture(scope="module")
def reference_profile(folder: Path) -> Run:
    return Run(folder, preset("reference"))


@pytest.fixture(scope="module")
def auto_profile(folder: Path) -> Run:
    return Run(folder, preset("auto"))


def their_transformer(path: Path) -> WanTransformer3DModel:
    model = make_transformer(TRANSFORMER)
    model.load_state_dict({to_diffusers(name): tensor for name, tensor in load_file(path).items()})
    return model


def their_embeddings(folder: Path) -> tuple[Tensor, Tensor]:
    """The reference encodes 512 padded tokens under a mask, cuts to the real length, and the model pads with zeros."""
    state = load_file(folder / "text_encoders" / f"{PREFIX}_text_encoder.safetensors")
    tokenizer = Tokenizer.from_bytes(bytes(state.pop("spiece_model").numpy()))
    encoder = make_text_encoder(TEXT_ENCODER)
    encoder.load_state_dict(state, strict=False)
    contexts = []
    for prompt in (PROMPT, NEGATIVE):
        ids = list(tokenizer.encode(prompt).ids)
        padded = torch.tensor([ids + [0] * (512 - len(ids))])
        mask = torch.tensor([[1] * len(ids) + [0] * (512 - len(ids))])
        context = encoder(padded, mask).last_hidden_state
        contexts.append(context * mask.unsqueeze(-1))
    return contexts[0], contexts[1]


def their_scheduler() -> UniPCMultistepScheduler:
    scheduler = UniPCMultistepScheduler(
        num_train_timesteps=1000, solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    scheduler.set_timesteps(STEPS)
    # The reference's own spacing, which diffusers' class does not have: 0.999 to 0, then shift, then a final 0.
    sigmas = np.linspace(1 - 1 / 1000, 0, STEPS + 1)[:-1]
    sigmas = SHIFT * sigmas / (1 + (SHIFT - 1) * sigmas)
    scheduler.timesteps = torch.from_numpy(sigmas * 1000).to(torch.int64)
    scheduler.sigmas = torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32))
    scheduler.set_begin_index(0)
    return scheduler


@torch.no_grad()
def their_latent(folder: Path) -> Tensor:
    """The loop of the reference; the result is normalised, as its transformers see it."""
    models = {
        name: their_transformer(folder / "diffusion_models" / f"{PREFIX}_{name}_noise.safetensors")
        for name in ("high", "low")
    }
    context, context_null = their_embeddings(folder)
    target_shape = (16, (SIZE.num_frames - 1) // 4 + 1, SIZE.height // 8, SIZE.width // 8)
    generator = torch.Generator(device="cpu").manual_seed(SEED)
    latent = torch.randn(*target_shape, dtype=torch.float32, generator=generator).unsqueeze(0)
    scheduler = their_scheduler()
    for timestep in scheduler.timesteps:
        name = "high" if timestep.item() >= BOUNDARY * 1000 else "low"
        time = timestep.expand(1)
        cond = models[name](latent, time, context, return_dict=False)[0]
        uncond = models[name](latent, time, context_null, return_dict=False)[0]
        prediction = uncond + GUIDANCE[name] * (cond - uncond)
        latent = scheduler.step(prediction, timestep, latent, return_dict=False)[0]
    return latent


@torch.no_grad()
def their_video(folder: Path, latent: Tensor) -> Tensor:
    vae = AutoencoderKLWan(base_dim=VAE.dim, z_dim=VAE.latent_channels)
    state = load_file(folder / "vae" / f"{PREFIX}_vae.safetensors")
    vae.load_state_dict({to_diffusers_vae(name): tensor for name, tensor in state.items()})
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (LATENT_MEAN, LATENT_STD))
    return vae.eval().decode(latent * std + mean, return_dict=False)[0]


def test_agrees_with_the_reference_loop(folder: Path, reference_profile: Run) -> None:
    latent = reference_profile.latent()
    theirs = their_latent(folder)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (LATENT_MEAN, LATENT_STD))
    assert relative_error(latent, theirs * std + mean) <= TOLERANCE
    assert relative_error(reference_profile.video(latent), their_video(folder, theirs)) <= TOLERANCE


def test_the_split_matters(folder: Path, reference_profile: Run) -> None:
    # What the comparison above would look like with a switch one step early: the test can fail.
    late = SampleRequest(recipe=recipe("official").with_changes(num_steps=STEPS, shift=SHIFT, boundary=0.7), seed=SEED)
    plan = reference_profile.pipeline.plan(late, SIZE)
    other = reference_profile.pipeline.sample(plan, reference_profile.conditioning()).latent
    assert relative_error(other, reference_profile.latent()) > 100 * TOLERANCE


def test_batched_and_sequential_guidance_agree(folder: Path, auto_profile: Run) -> None:
    assert auto_profile.plan().experts.guidance == "batched"
    sequential = Run(folder, preset("auto").with_settings({"guidance.execution": "sequential"}))
    assert relative_error(sequential.latent(), auto_profile.latent()) <= 1e-5


def test_same_seed_same_bits_whatever_ran_between(auto_profile: Run) -> None:
    first = auto_profile.latent()
    other = auto_profile.pipeline.plan(request(denoise=0.5), VideoSize(width=32, height=32, num_frames=5))
    auto_profile.pipeline.sample(other, auto_profile.conditioning())
    assert torch.equal(auto_profile.latent(), first)


def test_noise_from_the_cpu_is_the_same_on_a_cpu(auto_profile: Run) -> None:
    assert torch.equal(auto_profile.latent(noise_device="cpu"), auto_profile.latent())


def test_chained_runs_equal_one_run_where_the_solver_has_no_history(auto_profile: Run) -> None:
    euler = request().recipe.with_changes(solver="euler")
    whole = auto_profile.pipeline.plan(SampleRequest(recipe=euler, seed=SEED), SIZE)
    first = SampleRequest(recipe=euler, seed=SEED, end_step=3, leftover_noise="keep")
    second = SampleRequest(recipe=euler, seed=SEED, start_step=3, add_noise="off")
    conditioning, latent = auto_profile.conditioning(), None
    for part in (first, second):
        plan = auto_profile.pipeline.plan(part, SIZE)
        latent = auto_profile.pipeline.sample(plan, conditioning, latent).latent
    assert relative_error(latent, auto_profile.pipeline.sample(whole, conditioning).latent) <= 1e-5
