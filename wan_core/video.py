"""Video files and pictures: from decoded chunks to MP4, to a contact sheet, and back.

Frames are (T, H, W, 3) uint8 here, at the core's edge (`frames.levels`).
Files are H.264, 4:2:0, in BT.709 limited range and marked as such: unmarked files are shown with BT.601 or BT.709 by
the player's guess, and colours shift. H.264 is lossy; what must be kept exactly is the latent. No sound.
PyAV and Pillow are imported when they are used, so that a machine without them can do everything else.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from .errors import BROKEN_LIBRARY, InputError, UnsupportedError
from .files import check_writable, replacing

if TYPE_CHECKING:
    from PIL.Image import Image

# Visually lossless.
DEFAULT_CRF = 17
# A quarter of the work of the default of x264, for files of its size and within 0.2 dB (docs/LOG.md, 2026-11-21).
_PRESET = "veryfast"
# Chunks that may wait for the encoder: enough that neither side waits for the other's every hiccup.
_AHEAD = 4
_BT709 = 1
_LIMITED_RANGE = 1
# Flags of libswscale: bicubic, chroma at full resolution, accurate rounding. Without the last two, frames that are read
# back are 1.0 to 1.5 levels too dark on average; with them the bias is under 0.1 (2026-11-21, PyAV 18.1).
_ACCURATE = 0x4 | 0x2000 | 0x40000


def check_video_path(path: Path) -> Path:
    """`path` once an MP4 can be written there; to be called before long work. Raises `InputError` otherwise."""
    _pyav()
    return check_writable(path, ".mp4")


def write_video(chunks: Iterable[np.ndarray], path: Path, *, fps: Fraction | int = 16, crf: int = DEFAULT_CRF) -> int:
    """Encode chunks (t, H, W, 3) uint8 as they come and return the number of frames.

    Chunks are encoded in a thread, so that whoever makes them goes on meanwhile, at most `_AHEAD` chunks ahead. The
    file appears under its name only when it is complete. crf: 0 (lossless) to 51.
    """
    av = _pyav()
    with replacing(check_writable(path, ".mp4")) as temporary:
        # Made to stream: the index stands at the front of the file.
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            encoder = _Encoder(av, container, Fraction(fps), crf)
            with ThreadPoolExecutor(1, thread_name_prefix="mp4") as thread:
                queued: deque[Future[None]] = deque()
                for chunk in chunks:
                    queued.append(thread.submit(encoder.add, chunk))
                    if len(queued) > _AHEAD:
                        queued.popleft().result()
                while queued:
                    queued.popleft().result()
            encoder.finish()
    return encoder.num_frames


def read_video(path: Path) -> np.ndarray:
    """All frames (T, H, W, 3) uint8 of the first video stream of a file."""
    av = _pyav()
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{str(path)!r} holds no video stream")
            frames = [
                frame.reformat(format="rgb24", interpolation=_ACCURATE).to_ndarray()
                for frame in container.decode(video=0)
            ]
    except av.error.FFmpegError as error:
        raise InputError(f"{str(path)!r} cannot be read as a video: {error.strerror}") from error
    if not frames:
        raise InputError(f"{str(path)!r} holds no frames")
    return np.stack(frames)


def contact_sheet(frames: Sequence[np.ndarray], *, columns: int = 4, rows: int = 2) -> "Image":
    """A grid of frames (H, W, 3) uint8 spread evenly over a video, first and last included, in reading order."""
    from PIL import Image

    chosen = np.unique(np.linspace(0, len(frames) - 1, columns * rows).round().astype(int))
    height, width = frames[0].shape[:2]
    columns = min(columns, len(chosen))
    sheet = Image.new("RGB", (columns * width, -(-len(chosen) // columns) * height))
    for cell, index in enumerate(chosen):
        sheet.paste(Image.fromarray(frames[index]), (cell % columns * width, cell // columns * height))
    return sheet


def write_contact_sheet(frames: Sequence[np.ndarray], path: Path, *, columns: int = 4, rows: int = 2) -> None:
    """Write the contact sheet of a video as PNG, whole or not at all."""
    sheet = contact_sheet(frames, columns=columns, rows=rows)
    with replacing(check_writable(path, ".png")) as temporary:
        sheet.save(temporary, format="PNG")


def _pyav() -> ModuleType:
    try:
        import av
    except BROKEN_LIBRARY as error:
        raise UnsupportedError(f"MP4 files need the library PyAV ('av'), which does not load here: {error}") from error
    return av


class _Encoder:
    """One H.264 stream in an open container, opened at the first chunk, which tells its size."""

    def __init__(self, av: ModuleType, container: object, fps: Fraction, crf: int) -> None:
        self.num_frames = 0
        self._av, self._container, self._fps, self._crf = av, container, fps, crf
        self._stream: object | None = None

    def add(self, chunk: np.ndarray) -> None:
        if self._stream is None:
            self._stream = _add_stream(self._av, self._container, chunk.shape[1:3], self._fps, self._crf)
        for pixels in chunk:
            frame = _encodable(self._av, pixels, self.num_frames, self._fps)
            self._container.mux(self._stream.encode(frame))
            self.num_frames += 1

    def finish(self) -> None:
        assert self._stream is not None, "a video needs at least one frame"
        self._container.mux(self._stream.encode(None))


def _add_stream(av: ModuleType, container: object, size: tuple[int, int], fps: Fraction, crf: int) -> object:
    try:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": _PRESET})
    except av.codec.codec.UnknownCodecError as error:
        raise UnsupportedError("this build of PyAV has no H.264 encoder (libx264); install 'av' from PyPI") from error
    stream.height, stream.width = size
    # A frame for each thread: PyAV asks for threads within a frame, which wait for one another.
    stream.codec_context.thread_type = "FRAME"
    stream.pix_fmt = "yuv420p"
    stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = _BT709
    stream.codec_context.color_range = _LIMITED_RANGE
    return stream


def _encodable(av: ModuleType, pixels: np.ndarray, index: int, fps: Fraction) -> object:
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE)
    frame.pts, frame.time_base = index, 1 / fps
    return frame
