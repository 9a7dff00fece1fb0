"""What the models are: dimensions per checkpoint, and the constants of each family.

Values are those of the reference implementation (Wan-Video/Wan2.2, `wan/configs`). A miniature checkpoint has the
same family with other dimensions; dimensions always come from the tensors of the file, never from its name.
Shapes are written with B batch, C channels, T latent frames, H and W latent rows and columns, L tokens, D features.
"""

from dataclasses import dataclass
from enum import Enum


class Expert(Enum):
    """The two transformers of a Wan 2.2 mixture-of-experts model."""

    HIGH = "high"
    LOW = "low"

    def __str__(self) -> str:
        return f"{self.value}-noise expert"

    @property
    def other(self) -> "Expert":
        return Expert.LOW if self is Expert.HIGH else Expert.HIGH


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSpec:
    """Dimensions of one expert."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int
    out_dim: int
    text_dim: int
    freq_dim: int = 256
    text_len: int = 512
    patch: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def num_tokens(self, latent_size: tuple[int, int, int]) -> int:
        """Sequence length of a latent of size (T, H, W)."""
        t, h, w = (size // patch for size, patch in zip(latent_size, self.patch, strict=True))
        return t * h * w

    @property
    def num_parameters(self) -> int:
        """Parameters of one expert, biases, norms and modulation included."""
        d, f, p = self.dim, self.ffn_dim, self.patch[0] * self.patch[1] * self.patch[2]
        attention = 4 * (d * d + d) + 2 * d
        block = 2 * attention + 2 * d + (d * f + f) + (f * d + d) + 6 * d
        embeddings = (self.in_dim * p * d + d) + (self.text_dim * d + d) + (d * d + d)
        time = (self.freq_dim * d + d) + (d * d + d) + (d * 6 * d + 6 * d)
        head = (d * p * self.out_dim + p * self.out_dim) + 2 * d
        return self.num_layers * block + embeddings + time + head

    def forward_flops(self, latent_size: tuple[int, int, int], batch: int = 1) -> "Flops":
        """Floating-point operations of one forward (a multiply and an add count as two)."""
        n, d, f = self.num_tokens(latent_size), self.dim, self.ffn_dim
        # q, k, v, o and cross q, o run over the tokens; cross k, v over the text, once per prompt, not counted here.
        linear = 2 * n * (6 * d * d + 2 * d * f) * self.num_layers
        return Flops(
            linear=batch * linear,
            self_attention=batch * 4 * n * n * d * self.num_layers,
            cross_attention=batch * 4 * n * self.text_len * d * self.num_layers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Floating-point operations by kind."""

    linear: int
    self_attention: int
    cross_attention: int

    @property
    def total(self) -> int:
        return self.linear + self.self_attention + self.cross_attention


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeSpec:
    """Dimensions of a Wan 2.1 VAE. `dim` is 96 in the released model."""

    dim: int = 96
    latent_channels: int = 16
    dim_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    stride: tuple[int, int, int] = (4, 8, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderSpec:
    """Dimensions of a UMT5 encoder; the defaults are UMT5-XXL."""

    vocab_size: int = 256384
    dim: int = 4096
    attention_dim: int = 4096
    ffn_dim: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6

    @property
    def num_parameters(self) -> int:
        block = 4 * self.dim * self.attention_dim + 3 * self.dim * self.ffn_dim + 2 * self.dim
        return self.vocab_size * self.dim + self.num_layers * (block + self.num_buckets * self.num_heads) + self.dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What belongs to a released model rather than to its tensors."""

    name: str
    boundary: float
    shift: float
    num_steps: int
    guidance_high: float
    guidance_low: float
    num_frames: int
    fps: int
    vae_stride: tuple[int, int, int]
    latent_channels: int


T2V_A14B = Family(
    name="T2V-A14B", boundary=0.875, shift=12.0, num_steps=40, guidance_high=4.0, guidance_low=3.0,
    num_frames=81, fps=16, vae_stride=(4, 8, 8), latent_channels=16,
)  # fmt: skip
I2V_A14B = Family(
    name="I2V-A14B", boundary=0.900, shift=5.0, num_steps=40, guidance_high=3.5, guidance_low=3.5,
    num_frames=81, fps=16, vae_stride=(4, 8, 8), latent_channels=16,
)  # fmt: skip

T2V_A14B_TRANSFORMER = TransformerSpec(
    dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=16, out_dim=16, text_dim=4096
)
WAN21_VAE = VaeSpec()
UMT5_XXL = TextEncoderSpec()

NUM_TRAIN_TIMESTEPS = 1000

# Per-channel statistics of the Wan 2.1 latent space: the transformers see (raw - mean) / std.
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip

# The negative prompt that an empty one stands for (`sample_neg_prompt` of the reference).
DEFAULT_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


def latent_frames(num_frames: int, stride: int = 4) -> int:
    """Latent frames T of a video of `num_frames` = 4n + 1 frames."""
    return (num_frames - 1) // stride + 1


def video_frames(num_latent_frames: int, stride: int = 4) -> int:
    """Frames of the video that a latent of `num_latent_frames` decodes to."""
    return (num_latent_frames - 1) * stride + 1
