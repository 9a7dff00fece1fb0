"""Everything that decides what a training gives, in one place: data, batches, rates, numbers of steps.

Learning rates follow the share of the steps that is done, never a clock: a faster machine trains the same model sooner.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from miniature.clips import ClipSize
from wan_core.specs import T2V_A14B

# What the shipped run took on one H200, compiling and restarts included.
FULL_MINUTES = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeTraining:
    """The autoencoder: mean squared and absolute error of pixels, and the divergence from a unit normal.

    kl_weight: per element of the latent, against a mean over pixels: noise worth half of it, an error of 42 dB, is what
    the latent then tolerates, so that neighbours in latent space are neighbours on the screen. It grows from zero over
    the share `kl_ramp` of the phase, since a latent has to carry something before it can be priced.
    Most of the phase learns from windows of `window` pixels, since it takes many steps more than many pixels; after the
    share `whole_after` come whole pictures, and clips as long as the default video.
    num_scenes: how many scenes the clips are drawn from.
    """

    num_steps: int = 1990
    num_scenes: int = 32768
    batch: int = 32
    size: ClipSize = ClipSize(17, 128, 128)
    window: int = 64
    whole_after: float = 0.72
    whole_batch: int = 8
    whole_size: ClipSize = ClipSize(33, 128, 128)
    learning_rate: float = 1e-3
    absolute_weight: float = 0.1
    kl_weight: float = 5e-4
    kl_ramp: float = 0.36
    # Channels that carry next to nothing are not blown up to unit variance.
    least_std: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class BankSettings:
    """Latents of clips, coded once. `captions` wordings per clip, of at most `caption_tokens` tokens each."""

    num_clips: int = 40960
    part_clips: int = 8192
    batch: int = 128
    size: ClipSize = ClipSize(33, 128, 128)
    captions: int = 3
    caption_tokens: int = 32
    held_out_clips: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTraining:
    """Flow matching of both experts and the text encoder, at once.

    batch: clips per expert and step. text_len: positions that are computed; see `text.padded_attention`.
    shift: of the noise levels. drop: share of captions replaced by the empty or the default negative prompt.
    wrong: share of captions that belong to another clip. Captions of the wild are wrong, too; it is what guidance is
    good for, and without it a world as clean as ours needs none.
    """

    num_steps: int = 6030
    batch: int = 128
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    shift: float = T2V_A14B.shift
    boundary: float = T2V_A14B.boundary
    text_len: int = 64
    drop: float = 0.12
    wrong: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A whole training."""

    seed: int = 0
    warmup_steps: int = 200
    vae: VaeTraining = field(default_factory=VaeTraining)
    bank: BankSettings = field(default_factory=BankSettings)
    experts: ExpertTraining = field(default_factory=ExpertTraining)
    log_every: int = 50

    def within(self, minutes: float) -> "Settings":
        """The same training with as many steps as take about `minutes` in all on one H200."""
        factor = minutes / FULL_MINUTES
        return replace(
            self,
            vae=replace(self.vae, num_steps=max(round(self.vae.num_steps * factor), 1)),
            bank=replace(self.bank, num_clips=max(int(self.bank.num_clips * min(factor, 1.0)), self.bank.part_clips)),
            experts=replace(self.experts, num_steps=max(round(self.experts.num_steps * factor), 1)),
        )

    def with_changes(self, changes: Sequence[str]) -> "Settings":
        """A copy with numbers replaced, each written as "experts.batch=96"; `SystemExit` with a sentence for others."""
        changed = self
        for change in changes:
            name, _, value = change.partition("=")
            part, _, leaf = name.partition(".")
            owner = getattr(changed, part, None) if leaf else changed
            if not hasattr(owner, leaf or part) or not value:
                raise SystemExit(f"--set {change}: expected NAME=NUMBER, for example experts.batch=96")
            number = float(value) if "." in value or "e" in value else int(value)
            replaced = replace(owner, **{leaf or part: number})
            changed = replace(changed, **{part: replaced}) if leaf else replaced
        return changed


_TINY = ClipSize(5, 32, 32)
FULL = Settings()
# Every stage in seconds on a CPU, to prove that all of it runs; what it makes shows nothing.
SMOKE = Settings(
    warmup_steps=2,
    log_every=1,
    vae=VaeTraining(
        num_steps=3, num_scenes=16, batch=2, size=_TINY, window=16, whole_batch=2, whole_size=ClipSize(9, 32, 32)
    ),
    bank=BankSettings(num_clips=16, part_clips=8, batch=4, size=_TINY, held_out_clips=8),
    experts=ExpertTraining(num_steps=3, batch=2),
)
