"""How far two videos or two latents are apart, and how steady each of them is in time.

The first of the two is the reference. Videos are (T, H, W, 3), uint8 or floating point in [0, 1], and are compared in
[0, 1]; latents are (B, C, T, H, W) in whatever space both are in. Sums are float64, one frame at a time.

- PSNR is 10 log10(1 / MSE), of the MSE of the whole video: a mean of the frames' PSNR would be infinite with one
  identical frame.
- SSIM is Wang et al. 2004 (doi:10.1109/TIP.2003.819861): Gaussian window of 11x11 with sigma 1.5, population
  covariance, where the window lies inside the frame; mean over R, G, B and frames. It comes from kornia, which ComfyUI
  brings along.
- Motion MSE is the MSE between the frame differences x[t+1] - x[t] of both. An error that stands still, such as a
  colour shift, adds nothing to it; one that is drawn anew in every frame adds twice its MSE.
- Flicker is the mean of |x[t+1] - 2 x[t] + x[t-1]| of one video alone. VBench (arXiv:2311.17982) takes the first
  difference, which a steady fade raises as well.

It measures no perceptual distance (LPIPS, VMAF) and aligns nothing: frame t is compared with frame t.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Literal

from torch import Tensor, uint8

from .errors import BROKEN_LIBRARY, InputError

OnFrame = Callable[[int, int], None]
_Ssim = Callable[[Tensor, Tensor], float]
_SSIM_WINDOW = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameComparison:
    """One frame, or one latent frame, of both. `None`: see `Comparison.missing`."""

    mse: float
    relative_error: float | None
    ssim: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was measured. A figure that is `None` has its reason in `missing`, by its name.

    relative_error: Frobenius norm of the difference over that of the reference. flicker: of the reference, then of
    the other. ssim: of videos only.
    """

    kind: Literal["videos", "latents"]
    shape: tuple[int, ...]
    mse: float
    greatest_error: float
    relative_error: float | None
    cosine: float | None
    ssim: float | None
    motion_mse: float | None
    flicker: tuple[float, float] | None
    frames: tuple[FrameComparison, ...]
    missing: tuple[tuple[str, str], ...] = ()

    @property
    def identical(self) -> bool:
        """Whether every value is equal."""
        return self.mse == 0

    @property
    def psnr(self) -> float | None:
        """In dB, infinite for identical videos; `None` for latents, which have no peak."""
        return _psnr(self.mse) if self.kind == "videos" else None

    def why_missing(self, name: str) -> str:
        """The reason why the figure `name` is `None`."""
        return dict(self.missing)[name]

    def to_dict(self) -> dict[str, object]:
        """For JSON, which has no infinity: `psnr` is null where the videos are identical."""
        psnr = None if self.psnr is None or math.isinf(self.psnr) else self.psnr
        flicker = self.flicker and dict(zip(("reference", "candidate"), self.flicker, strict=True))
        computed = {"identical": self.identical, "psnr": psnr}
        return computed | asdict(self) | {"flicker": flicker, "missing": dict(self.missing)}

    def to_text(self) -> str:
        """The comparison for people."""
        return table((self,), ())

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for people; the names depend on the kind alone."""
        rows = [("identical", "yes" if self.identical else "no"), ("MSE", f"{self.mse:.4g}")]
        if self.kind == "videos":
            rows += [("PSNR", self._psnr_text()), ("SSIM", self._text("ssim", ".5f") + self._worst_ssim())]
            rows += [("relative error", self._text("relative_error", ".4g"))]
        else:
            rows += [("cosine", self._text("cosine", ".7f"))]
            rows += [("relative error", self._text("relative_error", ".4g") + self._worst_latent_frame())]
        flicker = self._no("flicker") if self.flicker is None else "{1:.4g}, reference {0:.4g}".format(*self.flicker)
        rows += [("greatest error", f"{self.greatest_error:.4g}"), ("motion MSE", self._motion_text())]
        return [*rows, ("flicker", flicker)]

    def _text(self, name: str, form: str) -> str:
        value = getattr(self, name)
        return self._no(name) if value is None else format(value, form)

    def _no(self, name: str) -> str:
        return f"none: {self.why_missing(name)}"

    def _psnr_text(self) -> str:
        worst = max(range(len(self.frames)), key=lambda index: self.frames[index].mse)
        return f"{_decibels(self.mse)}, lowest {_decibels(self.frames[worst].mse)} at frame {worst}"

    def _motion_text(self) -> str:
        if self.motion_mse is None or self.kind == "latents":
            return self._text("motion_mse", ".4g")
        return f"{self.motion_mse:.4g} (PSNR {_decibels(self.motion_mse)})"

    def _worst_ssim(self) -> str:
        values = [frame.ssim for frame in self.frames]
        return "" if None in values else f", lowest {min(values):.5f} at frame {values.index(min(values))}"

    def _worst_latent_frame(self) -> str:
        values = [frame.relative_error for frame in self.frames]
        return "" if None in values else f", highest {max(values):.4g} at latent frame {values.index(max(values))}"


def compare_videos(reference: Tensor, candidate: Tensor, *, on_frame: OnFrame | None = None) -> Comparison:
    """Compare two videos (T, H, W, 3), uint8 or floating point in [0, 1].

    on_frame: called with the frames done and all frames; may raise to stop. Raises `InputError` for other shapes, for
    shapes that differ, and for values that are not finite. Without kornia there is no SSIM, and a reason.
    """
    _check(reference, candidate, "video", "(frames, height, width, 3)", ("uint8", "floating point in 0 to 1"))
    ssim, reason = _load_ssim(*reference.shape[1:3])
    sums = _Sums("video", ssim)
    for index, (first, second) in enumerate(zip(reference, candidate, strict=True)):
        sums.add(_unit_range(first), _unit_range(second))
        if on_frame is not None:
            on_frame(index + 1, len(reference))
    return sums.comparison(tuple(reference.shape), "" if ssim else reason)


def compare_latents(reference: Tensor, candidate: Tensor) -> Comparison:
    """Compare two latents (B, C, T, H, W) of any float dtype; raises `InputError` as `compare_videos` does."""
    _check(reference, candidate, "latent", "(batch, channels, frames, height, width)", ("floating point",))
    sums = _Sums("latent", None)
    for index in range(reference.shape[2]):
        sums.add(reference[:, :, index].double(), candidate[:, :, index].double())
    return sums.comparison(tuple(reference.shape), "latents are no pictures")


def table(comparisons: Sequence[Comparison], titles: Sequence[str]) -> str:
    """Comparisons of the same kind side by side, one column each, under their titles where there are some."""
    columns = [[value for _, value in comparison.rows()] for comparison in comparisons]
    if titles:
        columns = [[title, *column] for title, column in zip(titles, columns, strict=True)]
    names = [*([""] if titles else []), *(name for name, _ in comparisons[0].rows())]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        f"{name:<16}" + "  ".join(value.ljust(width) for value, width in zip(values, widths, strict=True))
        for name, *values in zip(names, *columns, strict=True)
    ]
    return "\n".join(line.rstrip() for line in lines)


class _Sums:
    """Means over each frame and over its neighbours, in float64; frames (..., H, W) of one size."""

    def __init__(self, what: str, ssim: _Ssim | None) -> None:
        self._what, self._ssim = what, ssim
        self._frames: list[FrameComparison] = []
        self._powers: list[tuple[float, float, float]] = []
        self._motion: list[float] = []
        self._flicker: list[tuple[float, float]] = []
        self._greatest = 0.0
        self._last: tuple[Tensor, Tensor] | None = None
        self._last_steps: tuple[Tensor, Tensor] | None = None

    def add(self, reference: Tensor, candidate: Tensor) -> None:
        powers = tuple((a * b).mean().item() for a, b in _products(reference, candidate))
        for which, power in zip(("first", "second"), powers, strict=False):
            if not math.isfinite(power):
                raise InputError(
                    f"frame {len(self._frames)} of the {which} {self._what} holds NaN or infinity, expected finite "
                    "numbers"
                )
        error = candidate - reference
        mse = error.square().mean().item()
        ssim = None if self._ssim is None else self._ssim(reference, candidate)
        self._frames.append(FrameComparison(mse=mse, relative_error=_relative(mse, powers[0]), ssim=ssim))
        self._powers.append(powers)
        self._greatest = max(self._greatest, error.abs().max().item())
        self._add_steps((reference, candidate))

    def _add_steps(self, frames: tuple[Tensor, Tensor]) -> None:
        steps = None
        if self._last is not None:
            steps = tuple(now - before for now, before in zip(frames, self._last, strict=True))
            self._motion.append((steps[1] - steps[0]).square().mean().item())
            if self._last_steps is not None:
                pairs = zip(steps, self._last_steps, strict=True)
                self._flicker.append(tuple((now - before).abs().mean().item() for now, before in pairs))
        self._last, self._last_steps = frames, steps

    def comparison(self, shape: tuple[int, ...], no_ssim: str) -> Comparison:
        mse = fmean(frame.mse for frame in self._frames)
        reference, candidate, product = map(fmean, zip(*self._powers, strict=True))
        is_video = self._what == "video"
        figures = {
            "relative_error": (_relative(mse, reference), f"the first {self._what} is zero everywhere"),
            "cosine": (_cosine(reference, candidate, product), f"a {self._what} that is zero everywhere has no angle"),
            "ssim": (fmean(frame.ssim for frame in self._frames) if self._ssim else None, no_ssim),
            "motion_mse": (fmean(self._motion) if self._motion else None, "one frame does not move"),
            "flicker": (_mean_pair(self._flicker), "it takes three frames"),
        }
        missing = {name: reason for name, (value, reason) in figures.items() if value is None}
        if not is_video:
            missing["psnr"] = "latents have no peak value"
        return Comparison(
            kind="videos" if is_video else "latents",
            shape=shape,
            mse=mse,
            greatest_error=self._greatest,
            frames=tuple(self._frames),
            missing=tuple(missing.items()),
            **{name: value for name, (value, _) in figures.items()},
        )


def _products(reference: Tensor, candidate: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield reference, reference
    yield candidate, candidate
    yield reference, candidate


def _mean_pair(pairs: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    return tuple(map(fmean, zip(*pairs, strict=True))) if pairs else None


def _relative(mse: float, power: float) -> float | None:
    if power == 0:
        return 0.0 if mse == 0 else None
    return math.sqrt(mse / power)


def _cosine(reference: float, candidate: float, product: float) -> float | None:
    return product / math.sqrt(reference * candidate) if reference and candidate else None


def _psnr(mse: float) -> float:
    return -10 * math.log10(mse) if mse else math.inf


def _decibels(mse: float) -> str:
    return f"{_psnr(mse):.2f} dB" if mse else "infinite"


def _unit_range(frame: Tensor) -> Tensor:
    """A frame (H, W, 3) as (3, H, W) float64 in [0, 1]."""
    channels_first = frame.movedim(-1, 0)
    return channels_first.double() / 255 if frame.dtype == uint8 else channels_first.double()


def _check(reference: Tensor, candidate: Tensor, what: str, axes: str, dtypes: Sequence[str]) -> None:
    first, second = tuple(reference.shape), tuple(candidate.shape)
    if first != second:
        raise InputError(f"the first {what} has shape {first} and the second {second}, expected the same {axes}")
    if len(first) != axes.count(",") + 1 or (what == "video" and first[-1] != 3) or 0 in first:
        raise InputError(f"both {what}s have shape {first}, expected {axes}, none of them 0")
    for which, tensor in (("first", reference), ("second", candidate)):
        if not tensor.is_floating_point() and not ("uint8" in dtypes and tensor.dtype == uint8):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"the {which} {what} is {kind}, expected {' or '.join(dtypes)}")


def _load_ssim(height: int, width: int) -> tuple[_Ssim | None, str]:
    """SSIM of two frames (3, H, W) in [0, 1], or the reason why there is none."""
    if min(height, width) < _SSIM_WINDOW:
        return None, f"frames of {width}x{height} are smaller than its window of {_SSIM_WINDOW}x{_SSIM_WINDOW}"
    try:
        from kornia.metrics import ssim
    except BROKEN_LIBRARY as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        return None, f"it needs the package 'kornia', which does not load here ({cause})"

    def mean_ssim(reference: Tensor, candidate: Tensor) -> float:
        first, second = reference.float()[None].contiguous(), candidate.float()[None].contiguous()
        # eps: the formula has none, and black frames would not be identical to themselves.
        return ssim(first, second, _SSIM_WINDOW, max_val=1.0, eps=0.0, padding="valid").double().mean().item()

    return mean_ssim, ""
