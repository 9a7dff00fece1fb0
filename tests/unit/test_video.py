"""Video files: what is written is what was given, within H.264, and whole or not at all."""

import sys
import threading
from fractions import Fraction

import av
import numpy as np
import pytest

from wan_core import video
from wan_core.errors import InputError
from wan_core.video import (
    check_video_path,
    contact_sheet,
    read_video,
    write_contact_sheet,
    write_video,
)


def clip(num_frames: int = 17, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth moving pattern (T, H, W, 3), different in every channel."""
    t, y, x = np.mgrid[0:num_frames, 0:height, 0:width]
    channels = (np.sin((x + 4 * t) / 30), np.cos((y + t) / 25), 0.6 * np.sin((x + y + t) / 20))
    return np.stack([127.5 + 100 * channel for channel in channels], axis=-1).round().astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def test_round_trip_keeps_the_picture(tmp_path):
    frames = clip()
    num_frames = write_video((frames[i : i + 4] for i in range(0, 17, 4)), tmp_path / "a.mp4", fps=16)
    back = read_video(tmp_path / "a.mp4")
    assert (num_frames, back.shape, back.dtype) == (17, frames.shape, np.uint8)
    assert psnr(back, frames) > 38
    # Colours are not shifted: the wrong matrix or range moves the mean of a channel by several levels.
    assert np.abs(back.astype(float).mean((0, 1, 2)) - frames.mean((0, 1, 2))).max() < 1


def test_every_frame_is_in_its_place(tmp_path):
    frames = clip()
    write_video([frames], tmp_path / "a.mp4")
    back = read_video(tmp_path / "a.mp4")
    nearest = [int(np.argmax([psnr(frame, other) for other in frames])) for frame in back]
    assert nearest == list(range(17))


@pytest.mark.parametrize("fps", [16, Fraction(24000, 1001)])
def test_file_says_what_a_player_needs(tmp_path, fps):
    write_video([clip()], tmp_path / "a.mp4", fps=fps)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.frames) == (64, 48, 17)
        assert stream.average_rate == fps
        assert float(stream.duration * stream.time_base) == pytest.approx(17 / fps, rel=1e-3)
        # BT.709, limited range.
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)


def test_one_frame_is_a_video(tmp_path):
    assert write_video([clip(1)], tmp_path / "a.mp4") == 1
    assert read_video(tmp_path / "a.mp4").shape == (1, 48, 64, 3)


def test_a_higher_crf_makes_a_smaller_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
    sizes = []
    for crf in (10, 40):
        write_video([noise], tmp_path / "a.mp4", crf=crf)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
    assert sizes[1] < sizes[0] / 2


def test_chunks_are_encoded_while_the_next_ones_are_made(tmp_path, monkeypatch):
    """The maker of chunks waits for no encoding, until the encoder is so many chunks behind."""
    encoding, made = threading.Event(), []
    encode = av.VideoFrame.from_ndarray

    def held_back(array, *args, **kwargs):
        assert encoding.wait(60)
        return encode(array, *args, **kwargs)

    class HeldBack:
        from_ndarray = staticmethod(held_back)

    monkeypatch.setattr(av, "VideoFrame", HeldBack)

    def chunks():
        for index in range(17):
            if index == video._AHEAD:
                assert len(made) == video._AHEAD, "nothing was waited for until now"
                encoding.set()
            made.append(index)
            yield clip()[index : index + 1]

    assert write_video(chunks(), tmp_path / "a.mp4") == 17
    assert psnr(read_video(tmp_path / "a.mp4"), clip()) > 38


def test_an_encoder_that_fails_stops_the_work(tmp_path, monkeypatch):
    class Broken:
        @staticmethod
        def from_ndarray(array, *args, **kwargs):
            raise RuntimeError("encoder failed")

    monkeypatch.setattr(av, "VideoFrame", Broken)
    made = []

    def chunks():
        for index in range(17):
            made.append(index)
            yield clip(1)

    with pytest.raises(RuntimeError, match="encoder failed"):
        write_video(chunks(), tmp_path / "a.mp4")
    assert len(made) <= video._AHEAD + 1
    assert not list(tmp_path.iterdir())


def test_a_failed_video_leaves_nothing_and_keeps_what_was_there(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"older")

    def chunks():
        yield clip(4)
        raise RuntimeError("decoder failed")

    with pytest.raises(RuntimeError, match="decoder failed"):
        write_video(chunks(), tmp_path / "a.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"older"


def test_folders_are_made(tmp_path):
    write_video([clip(1)], tmp_path / "new" / "folder" / "a.mp4")
    assert (tmp_path / "new" / "folder" / "a.mp4").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a.avi", "expected a name ending in .mp4, such as 'a.mp4'"),
        ("a", "expected a name ending in .mp4, such as 'a.mp4'"),
        ("folder.mp4", "is a folder, expected the name of a file"),
        ("file/a.mp4", "cannot make the folder"),
    ],
)
def test_bad_paths_are_refused_before_any_work(tmp_path, name, sentence):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError) as caught:
        check_video_path(tmp_path / name)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unwritable_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="cannot write into the folder.*permission denied"):
        check_video_path(tmp_path / "a.mp4")


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(InputError, match="cannot write .*No space left on device"):
        write_video([clip(1)], tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_without_pyav_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match="MP4 files need the library PyAV"):
        check_video_path(tmp_path / "a.mp4")


@pytest.mark.parametrize("content", [None, b"", b"no video at all" * 100])
def test_unreadable_videos_are_one_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"there is no file|cannot be read as a video"):
        read_video(tmp_path / "a.mp4")


def test_contact_sheet_shows_first_and_last_in_reading_order():
    frames = np.stack([np.full((16, 32, 3), level, dtype=np.uint8) for level in range(0, 170, 10)])
    sheet = contact_sheet(frames, columns=3, rows=2)
    assert sheet.size == (96, 32)
    cells = [sheet.getpixel((x, y))[0] for y in (8, 24) for x in (16, 48, 80)]
    assert cells == [0, 30, 60, 100, 130, 160]


@pytest.mark.parametrize(("num_frames", "size"), [(1, (32, 16)), (3, (96, 16)), (5, (128, 32))])
def test_contact_sheet_of_a_short_video_has_no_repeats(num_frames, size):
    frames = np.arange(num_frames, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(32, 2).repeat(3, 3)
    assert contact_sheet(frames, columns=4, rows=2).size == size


def test_pictures_are_written_whole_under_the_right_name(tmp_path):
    write_contact_sheet(list(clip(4)), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(InputError, match=r"expected a name ending in \.png"):
        write_contact_sheet(list(clip(4)), tmp_path / "a.jpg")
