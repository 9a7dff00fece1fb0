"""The VAE's contract: names, chunks, no state between runs, causality, dtypes, refusals. Parity has its own file."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.unit.models.random_vae import SMALL, draw, random_vae
from wan_core.errors import InputError
from wan_core.kernels.vae import TORCH
from wan_core.models import vae21
from wan_core.models.vae21 import WanVae, decoder_levels
from wan_core.models.vae_layers import FeatureCache, Upsample
from wan_core.specs import WAN21_VAE, VaeSpec

SIZE = (4, 6)

RELEASED_SHAPES = {
    "conv1.weight": (32, 32, 1, 1, 1),
    "conv2.bias": (16,),
    "encoder.conv1.weight": (96, 3, 3, 3, 3),
    "encoder.downsamples.0.residual.2.weight": (96, 96, 3, 3, 3),
    "encoder.downsamples.2.resample.1.weight": (96, 96, 3, 3),
    "encoder.downsamples.3.shortcut.weight": (192, 96, 1, 1, 1),
    "encoder.downsamples.5.time_conv.weight": (192, 192, 3, 1, 1),
    "encoder.downsamples.10.residual.6.bias": (384,),
    "encoder.head.2.weight": (32, 384, 3, 3, 3),
    "decoder.conv1.weight": (384, 16, 3, 3, 3),
    "decoder.middle.0.residual.0.gamma": (384, 1, 1, 1),
    "decoder.middle.1.norm.gamma": (384, 1, 1),
    "decoder.middle.1.to_qkv.weight": (1152, 384, 1, 1),
    "decoder.upsamples.3.time_conv.weight": (768, 384, 3, 1, 1),
    "decoder.upsamples.3.resample.1.weight": (192, 384, 3, 3),
    "decoder.upsamples.4.shortcut.weight": (384, 192, 1, 1, 1),
    "decoder.upsamples.11.resample.1.weight": (96, 192, 3, 3),
    "decoder.upsamples.14.residual.3.gamma": (96, 1, 1, 1),
    "decoder.head.0.gamma": (96, 1, 1, 1),
    "decoder.head.2.bias": (3,),
}


@pytest.fixture(scope="module")
def vae() -> WanVae:
    return random_vae()


@pytest.fixture(scope="module")
def latent() -> Tensor:
    return draw(1, 16, 3, *SIZE)


@pytest.fixture(scope="module")
def video() -> Tensor:
    return draw(1, 3, 9, 32, 48, seed=1).clamp(-1, 1)


def test_released_vae_has_the_official_tensors() -> None:
    with torch.device("meta"):
        state = WanVae(WAN21_VAE).state_dict()
    assert len(state) == 194
    assert {name: tuple(state[name].shape) for name in RELEASED_SHAPES} == RELEASED_SHAPES
    assert sum(tensor.numel() for tensor in state.values()) == 126_892_531


def test_levels_of_the_released_decoder() -> None:
    rows = [(level.in_channels, level.channels, level.rows, level.frames) for level in decoder_levels(WAN21_VAE)]
    assert rows == [(384, 384, 1, 1), (192, 384, 2, 2), (192, 192, 4, 4), (96, 96, 8, 4)]
    assert [level.upsample for level in decoder_levels(WAN21_VAE)] == ["space-time", "space-time", "space", "none"]


def test_real_size_on_the_meta_device() -> None:
    with torch.device("meta"):
        vae = WanVae(WAN21_VAE).bfloat16()
        chunks = list(vae.decode_chunks(torch.empty(2, 16, 3, 90, 160)))
        encoded = vae.encode(torch.empty(1, 3, 5, 720, 1280))
    assert [tuple(chunk.shape) for chunk in chunks] == [(2, 3, frames, 720, 1280) for frames in (1, 4, 4)]
    assert encoded.shape == (1, 16, 2, 90, 160)
    assert encoded.dtype == chunks[0].dtype == torch.bfloat16


def test_chunks_are_the_video(vae: WanVae, latent: Tensor) -> None:
    chunks = list(vae.decode_chunks(latent))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4]
    assert torch.equal(torch.cat(chunks, dim=2), vae.decode(latent))


def test_chunks_are_the_latent(vae: WanVae, video: Tensor) -> None:
    chunks = list(vae.encode_chunks(video))
    assert [chunk.shape for chunk in chunks] == [(1, 16, 1, *SIZE)] * 3
    assert torch.equal(torch.cat(chunks, dim=2), vae.encode(video))


@pytest.mark.parametrize("frames", [1, 2])
def test_decoding_is_causal(vae: WanVae, latent: Tensor, frames: int) -> None:
    whole = vae.decode(latent)
    part = vae.decode(latent[:, :, :frames])
    assert torch.equal(part, whole[:, :, : part.shape[2]])


@pytest.mark.parametrize("frames", [1, 5])
def test_encoding_is_causal(vae: WanVae, video: Tensor, frames: int) -> None:
    whole = vae.encode(video)
    part = vae.encode(video[:, :, :frames])
    assert torch.equal(part, whole[:, :, : part.shape[2]])


def test_later_frames_depend_on_earlier_ones(vae: WanVae, latent: Tensor) -> None:
    changed = latent.clone()
    changed[:, :, 0] += 1
    assert not torch.allclose(vae.decode(changed)[:, :, 5:], vae.decode(latent)[:, :, 5:], atol=1e-3)


def test_no_state_is_left(vae: WanVae, latent: Tensor, video: Tensor) -> None:
    before = vae.decode(latent)
    abandoned = vae.decode_chunks(-latent)
    next(abandoned), next(abandoned)
    vae.encode(video)
    assert torch.equal(vae.decode(latent), before)
    abandoned.close()
    assert torch.equal(vae.decode(latent), before)


def test_runs_may_interleave(vae: WanVae, latent: Tensor) -> None:
    pairs = list(zip(vae.decode_chunks(latent), vae.decode_chunks(-latent), strict=True))
    assert torch.equal(torch.cat([one for one, _ in pairs], dim=2), vae.decode(latent))
    assert torch.equal(torch.cat([other for _, other in pairs], dim=2), vae.decode(-latent))


def test_a_batch_is_its_videos(vae: WanVae) -> None:
    latent = draw(2, 16, 2, *SIZE)
    apart = torch.cat([vae.decode(latent[:1]), vae.decode(latent[1:])])
    torch.testing.assert_close(vae.decode(latent), apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("narrow", [9, 17, 33])
def test_planes_are_windows(vae: WanVae, latent: Tensor, video: Tensor, narrow: int) -> None:
    """Whichever layers convolve frame by frame over three frames side by side: those of less than `narrow` channels."""
    other = WanVae(
        SMALL, replace(TORCH, forms=replace(TORCH.forms, stacks=lambda channels: channels < narrow))
    ).requires_grad_(False)
    other.load_state_dict(vae.state_dict())
    torch.testing.assert_close(other.decode(latent), vae.decode(latent), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.encode(video), vae.encode(video), rtol=1e-5, atol=1e-5)
    assert torch.equal(other.decode(latent[:, :, :1]), vae.decode(latent[:, :, :1]))


@pytest.mark.parametrize("at_once", [1, 4])
def test_frames_at_once_change_nothing(
    vae: WanVae, latent: Tensor, video: Tensor, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if at_once == 1:
        video = video[:, :, :1]  # an encoder halves the frame rate, so it takes two frames or more
    decoded, encoded = vae.decode(latent), vae.encode(video)
    monkeypatch.setattr(vae21, "FRAMES_AT_ONCE", at_once)
    torch.testing.assert_close(vae.decode(latent), decoded, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vae.encode(video), encoded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temporal", [(False, False, False), (True, False, False), (True, True, True)])
def test_other_strides(temporal: tuple[bool, ...]) -> None:
    stride = 2 ** sum(temporal)
    vae = random_vae(VaeSpec(dim=8, temporal_downsample=temporal, stride=(stride, 8, 8)))
    video = draw(1, 3, 2 * stride + 1, 16, 16)
    latent = vae.encode(video)
    assert latent.shape == (1, 16, 3, 2, 2)
    assert vae.decode(latent).shape == video.shape


def test_output_is_clamped_and_carries_no_gradient(vae: WanVae, latent: Tensor) -> None:
    loud = WanVae(SMALL)
    loud.load_state_dict(vae.state_dict())
    nn.init.constant_(loud.decoder.head["2"].bias, 0.9)
    decoded = loud.decode(latent.requires_grad_())
    latent.requires_grad_(False)
    assert decoded.max() == 1
    assert decoded.min() >= -1
    assert not decoded.requires_grad


def test_works_in_the_dtype_of_the_weights(latent: Tensor, video: Tensor) -> None:
    half = random_vae().bfloat16()
    assert half.decode(latent).dtype == torch.bfloat16
    assert half.encode(video).dtype == torch.bfloat16
    assert torch.equal(half.decode(latent), half.decode(latent.bfloat16()))


def test_run_may_cross_inference_mode(vae: WanVae, latent: Tensor) -> None:
    expected = vae.decode(latent)
    chunks = vae.decode_chunks(latent)
    with torch.inference_mode():
        first = next(chunks)
    second = next(chunks)
    with torch.inference_mode():
        third = next(chunks)
        assert torch.equal(torch.cat([first, second, third], dim=2), expected)


def test_upsampling_is_exact_in_bfloat16() -> None:
    layer = Upsample(4, temporal=False).bfloat16().requires_grad_(False)
    conv = layer.resample["1"]
    conv.weight.zero_()
    conv.bias.zero_()
    for channel in range(2):
        conv.weight[channel, channel, 1, 1] = 1
    x = draw(1, 4, 2, 3, 5).bfloat16()
    expected = x[:, :2].repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    assert torch.equal(layer(x, FeatureCache(1)), expected)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 48, 3, 4, 6), ["48 channels", "Wan 2.2 VAE", "expects 16"]),
        ((1, 4, 3, 4, 6), ["4 channels", "expects 16"]),
        ((16, 3, 4, 6), ["(16, 3, 4, 6)", "(batch, 16, T, H, W)"]),
        ((1, 16, 0, 4, 6), ["(1, 16, 0, 4, 6)", "(batch, 16, T, H, W)"]),
    ],
)
def test_wrong_latent_is_refused_at_the_call(vae: WanVae, shape: tuple[int, ...], said: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        vae.decode_chunks(torch.zeros(shape))
    assert all(part in str(refusal.value) for part in said), refusal.value


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 3, 16, 32, 48), ["16 frames", "4n + 1", "17"]),
        ((1, 3, 6, 32, 48), ["6 frames", "5"]),
        ((1, 3, 82, 32, 48), ["82 frames", "81"]),
        ((1, 3, 2, 32, 48), ["2 frames", "nearest is 1"]),
        ((1, 3, 5, 30, 48), ["height is 30", "multiple of 8", "32"]),
        ((1, 3, 5, 32, 3), ["width is 3", "multiple of 8", "8 is nearest"]),
        ((1, 4, 5, 32, 48), ["(1, 4, 5, 32, 48)", "(batch, 3, frames, height, width)"]),
        ((3, 5, 32, 48), ["(3, 5, 32, 48)"]),
        ((1, 3, 0, 32, 48), ["(1, 3, 0, 32, 48)"]),
    ],
)
def test_wrong_video_is_refused_at_the_call(vae: WanVae, shape: tuple[int, ...], said: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        vae.encode_chunks(torch.zeros(shape))
    assert all(part in str(refusal.value) for part in said), refusal.value


def test_smallest_latent(vae: WanVae) -> None:
    decoded = vae.decode(draw(1, 16, 2, 1, 1))
    assert decoded.shape == (1, 3, 5, 8, 8)
    assert math.isfinite(decoded.sum().item())
