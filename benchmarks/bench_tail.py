"""What stands on either side of the sampling, for `bench_vae`: prompts to context, decoded frames to an MP4."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from miniature.vocabulary import train_vocabulary
from wan_core import video
from wan_core.bench.random_weights import fill_module
from wan_core.frames import fractions, levels, on_host
from wan_core.models.t5 import Umt5Encoder, encode_prompts
from wan_core.models.tokenizer import Tokenizer
from wan_core.models.vae21 import WanVae
from wan_core.pacing import Pacer
from wan_core.specs import DEFAULT_NEGATIVE_PROMPT, UMT5_XXL

_PROMPT = (
    "Two cats in boxing gear and bright gloves fight on a spotlighted stage, the camera circles them slowly while dust "
    "hangs in the beams of light, shallow depth of field, film grain, the crowd is out of focus."
)
# x264's presets, and whether its threads share a frame (what PyAV asks for) or take one each.
_PRESETS = (("medium", "SLICE"), ("medium", "FRAME"), ("fast", "FRAME"), ("veryfast", "SLICE"), ("veryfast", "FRAME"))


def seconds_of(work: Callable[[], object], repeats: int = 3) -> dict[str, object]:
    samples = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        samples.append(time.perf_counter() - start)
    return {"seconds": median(samples), "samples": samples}


def frames_of(vae: WanVae, latent: Tensor) -> Iterator[np.ndarray]:
    for frames in on_host(vae.decode_chunks(latent), levels):
        yield frames[0].numpy()


def smooth_clip(num_frames: int) -> list[np.ndarray]:
    """Chunks of four frames 1280x720 that an encoder finds about as hard as a film: moving gradients and fine grain."""
    y, x = torch.meshgrid(torch.arange(720.0), torch.arange(1280.0), indexing="ij")
    noise = torch.Generator().manual_seed(0)
    frames = []
    for t in range(num_frames):
        planes = torch.stack(
            [torch.sin((x + 9 * t) / 37), torch.cos((y - 5 * t) / 23), torch.sin((x + y + 7 * t) / 51)]
        )
        grain = torch.randn(1, 720, 1280, generator=noise) * 3
        frames.append((127.5 + 90 * planes + grain).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())
    return [np.stack(frames[start : start + 4]) for start in range(0, num_frames, 4)]


def tail(vae: WanVae, latent: Tensor, folder: Path) -> dict[str, object]:
    """Seconds of decoding 81 frames, to nowhere, to the host in both forms, and to an MP4; then the MP4 by itself."""
    num_frames = 4 * latent.shape[2] - 3
    image = torch.empty(num_frames, 8 * latent.shape[3], 8 * latent.shape[4], 3)

    def nowhere() -> None:
        for _ in vae.decode_chunks(latent):
            pass

    def to_image() -> None:
        start = 0
        for frames in on_host(vae.decode_chunks(latent), fractions):
            image[start : start + frames.shape[1]] = frames[0]
            start += frames.shape[1]

    def to_image_at_once() -> None:
        start = 0
        for chunk in vae.decode_chunks(latent):
            image[start : start + chunk.shape[2]] = fractions(chunk)[0]
            start += chunk.shape[2]

    kept = list(frames_of(vae, latent))
    smooth = smooth_clip(num_frames)
    works: dict[str, Callable[[], object]] = {
        "decode": nowhere,
        "decode, uint8 on the host": lambda: [None for _ in frames_of(vae, latent)],
        "decode, IMAGE on the host": to_image,
        "decode, IMAGE, waiting for every copy": to_image_at_once,
        "decode and MP4": lambda: video.write_video(frames_of(vae, latent), folder / "a.mp4"),
        "MP4 alone, the same frames": lambda: video.write_video(kept, folder / "b.mp4"),
        "MP4 alone, smooth frames": lambda: video.write_video(smooth, folder / "c.mp4"),
    }
    found: dict[str, object] = {}
    for name, work in works.items():
        try:
            found[name] = seconds_of(work, repeats=2)
            print(f"  {name:<42}{found[name]['seconds']:>7.3f} s", flush=True)
        except Exception as error:  # noqa: BLE001 - one that fails must not cost the others
            found[name] = f"{type(error).__name__}: {error}"
            print(f"  {name:<42}{found[name]}", flush=True)
    found["bytes"] = {path.name: path.stat().st_size for path in folder.glob("*.mp4")}
    print(f"  {found['bytes']}")
    return found


def presets(vae: WanVae, latent: Tensor, folder: Path) -> dict[str, object]:
    """Frames a second, size and PSNR of x264's presets, on decoded noise and on smooth frames."""
    import av

    found: dict[str, object] = {}
    clips = {"decoded": list(frames_of(vae, latent)), "smooth": smooth_clip(33)}
    num_frames = 33
    start = time.perf_counter()
    for index, pixels in enumerate(frame for chunk in clips["smooth"] for frame in chunk):
        video._encodable(av, pixels, index, Fraction(16))
    found["conversion_ms_a_frame"] = (time.perf_counter() - start) / num_frames * 1e3
    print(f"  colour conversion {found['conversion_ms_a_frame']:.2f} ms a frame")
    for name, chunks in clips.items():
        for preset, threads in _PRESETS:
            path = folder / "p.mp4"
            start = time.perf_counter()
            _encode(av, chunks, path, preset, threads)
            seconds = time.perf_counter() - start
            got, given = video.read_video(path).astype(np.float32), np.concatenate(chunks).astype(np.float32)
            psnr = float(10 * np.log10(255**2 / np.mean((got - given) ** 2)))
            row = {"fps": num_frames / seconds, "bytes": path.stat().st_size, "psnr": psnr}
            found[f"{name} {preset} {threads}"] = row
            size = f"{row['bytes'] / 1e6:.2f} MB"
            print(
                f"  {name:<10}{preset:<10}{threads:<8}{row['fps']:>7.1f} frames/s{size:>10}{psnr:>7.2f} dB", flush=True
            )
    return found


def _encode(av: object, chunks: list[np.ndarray], path: Path, preset: str, threads: str) -> None:
    with av.open(str(path), "w") as container:
        stream = video._add_stream(av, container, chunks[0].shape[1:3], Fraction(16), video.DEFAULT_CRF)
        stream.options = {**stream.options, "preset": preset}
        stream.codec_context.thread_type = threads
        for index, pixels in enumerate(frame for chunk in chunks for frame in chunk):
            container.mux(stream.encode(video._encodable(av, pixels, index, Fraction(16))))
        container.mux(stream.encode(None))


def text() -> dict[str, object]:
    """Seconds of two prompts through UMT5-XXL in bfloat16, as the pipeline encodes them, its weights on the device."""
    tokenizer = Tokenizer.from_bytes(train_vocabulary(1024))
    with torch.device("meta"):
        encoder = Umt5Encoder(replace(UMT5_XXL, vocab_size=1024)).bfloat16()
    encoder.to_empty(device="cuda")
    fill_module(encoder, lambda name: name)
    prompts = [_PROMPT, DEFAULT_NEGATIVE_PROMPT]
    found: dict[str, object] = {"tokens": [len(tokenizer.encode(prompt).ids) for prompt in prompts]}

    def paced() -> None:
        with Pacer(encoder.blocks, lambda: False):
            encode_prompts(encoder, tokenizer, prompts).cpu()

    for name, work in {
        "two prompts, paced": paced,
        "two prompts": lambda: encode_prompts(encoder, tokenizer, prompts).cpu(),
        "a short one": lambda: encode_prompts(encoder, tokenizer, ["a red circle"]).cpu(),
    }.items():
        work()
        found[name] = seconds_of(work)
        print(f"  {name:<42}{found[name]['seconds'] * 1e3:>7.1f} ms", flush=True)
    print(f"  tokens {found['tokens']}, {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    return found
