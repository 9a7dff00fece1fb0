"""Frames in their consumers' forms, and their way to the host."""

import pytest
import torch
from torch import Tensor

from wan_core.frames import fractions, levels, on_host


def test_levels_are_rounded_and_clipped() -> None:
    values = torch.tensor([-1.5, -1.0, -0.9999, 0.0, 0.0039, 0.0040, 0.999, 1.0, 7.0])
    frames = levels(values.reshape(1, 1, 1, 1, 9).expand(1, 3, 2, 4, 9))
    assert (frames.shape, frames.dtype, frames.is_contiguous()) == ((1, 2, 4, 9, 3), torch.uint8, True)
    assert frames[0, 1, 3, :, 2].tolist() == [0, 0, 0, 128, 128, 128, 255, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_levels_survive_the_way_there_and_back(dtype: torch.dtype) -> None:
    """A level written as value / 127.5 - 1 comes back as itself, as far as the dtype can hold it."""
    given = torch.arange(256)
    video = (given / 127.5 - 1).to(dtype).reshape(1, 1, 1, 1, 256).expand(1, 3, 1, 1, 256)
    error = (levels(video)[0, 0, 0, :, 0].int() - given).abs()
    assert error.max() <= {torch.float32: 0, torch.float16: 0, torch.bfloat16: 1}[dtype]


def test_fractions_are_the_hosts_image() -> None:
    video = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]).reshape(1, 1, 1, 1, 6).repeat(2, 3, 1, 1, 1)
    video[1] = 0
    frames = fractions(video.bfloat16())
    assert (frames.shape, frames.dtype, frames.is_contiguous()) == ((2, 1, 1, 6, 3), torch.float32, True)
    assert frames[0, 0, 0, :, 1].tolist() == [0, 0, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize("form", [levels, fractions])
def test_a_chunk_is_left_as_it_was(form) -> None:
    video = torch.linspace(-2, 2, 96).reshape(1, 3, 2, 4, 4)
    before = video.clone()
    form(video)
    assert torch.equal(video, before)


def drawn(device: str, num_chunks: int = 6) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    size = (1, 3, 4, 720, 1280) if device == "cuda" else (1, 3, 2, 4, 6)
    return [torch.randn(size, generator=generator, device=device) for _ in range(num_chunks)]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("form", [levels, fractions])
def test_chunks_arrive_whole_and_in_order(form, device: str) -> None:
    """Device memory is freed and taken again while copies are under way: a copy of the wrong moment would differ."""
    chunks = drawn(device)

    def decode():
        for chunk in chunks:
            yield chunk * 1.0
            torch.full_like(chunk, -7.0)

    for host, chunk in zip(on_host(decode(), form), chunks, strict=True):
        assert host.device.type == "cpu"
        assert torch.equal(host, form(chunk).cpu())


def test_on_a_cpu_nothing_lags() -> None:
    asked = []

    def decode():
        for index, chunk in enumerate(drawn("cpu")):
            asked.append(index)
            yield chunk

    for index, _ in enumerate(on_host(decode(), levels)):
        assert asked == list(range(index + 1))


@pytest.mark.gpu
def test_the_device_has_its_next_work_before_a_chunk_is_handed_out() -> None:
    asked = []

    def decode():
        for index, chunk in enumerate(drawn("cuda")):
            asked.append(index)
            yield chunk

    frames = on_host(decode(), levels)
    next(frames)
    assert asked == [0, 1]
    assert len(list(frames)) == 5


def test_a_decoder_that_fails_is_heard() -> None:
    def decode():
        yield from drawn("cpu", 1)
        raise RuntimeError("decoder failed")

    with pytest.raises(RuntimeError, match="decoder failed"):
        list(on_host(decode(), levels))
