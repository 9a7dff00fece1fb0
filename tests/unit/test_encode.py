"""Video to latent as the product encodes it: whole frames or tiles, in memory that was planned for the decode."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.unit.models.random_vae import random_vae, smooth_latent
from tests.unit.recovery.conftest import out_of_memory
from wan_core.component_plan import resolve_decode
from wan_core.components import Vae
from wan_core.errors import InputError, Interrupted, OutOfMemoryError
from wan_core.hardware import Hardware
from wan_core.hooks import Silent
from wan_core.kernels.vae import TORCH
from wan_core.live_bytes import LiveBytes
from wan_core.models.vae21 import WanVae
from wan_core.models.vae_memory import decode_bytes
from wan_core.models.vae_tiling import Tile
from wan_core.offload.weights import Weights
from wan_core.profiles import preset
from wan_core.recovery.ladder import code_down_the_ladder, smaller_tiles
from wan_core.report import Report
from wan_core.specs import WAN21_VAE

SMALL = Tile(height=48, width=48)


@pytest.fixture(scope="module")
def values() -> dict[str, Tensor]:
    return dict(random_vae().named_parameters())


@pytest.fixture
def vae(values: dict[str, Tensor]) -> Vae:
    """One whose weights are read when it is first used."""

    def fill(targets: dict[str, Tensor], on_progress: object) -> None:
        for name, target in targets.items():
            target.data.copy_(values[name])

    with torch.device("meta"):
        module = WanVae(random_vae().spec)
    module.requires_grad_(requires_grad=False)
    return Vae(Weights(module, fill, device="cpu", dtype=torch.float32), ())


@pytest.fixture(scope="module")
def video() -> Tensor:
    """(1, 3, 5, 64, 640): wide enough for two tiles."""
    frames = smooth_latent(1, 64, 640)[:, :3].clamp(-1, 1)
    return torch.cat([frames.roll(shift, dims=-1) for shift in range(0, 40, 8)], dim=2)


def encoded(vae: Vae, video: Tensor, tile: Tile | None = None, hooks: Silent | None = None) -> Tensor:
    return torch.cat(list(vae.encode_chunks(video, tile, hooks or Silent())), dim=2)


def test_tiles_encode_closely(vae: Vae, video: Tensor) -> None:
    whole, tiled = encoded(vae, video), encoded(vae, video, SMALL)
    assert whole.shape == tiled.shape == (1, 16, 2, 8, 80)
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).norm() <= 1e-3 * whole.norm()


@pytest.mark.parametrize(("tile", "total"), [(None, 2), (SMALL, 4)])
def test_hooks_see_every_chunk_and_may_stop(vae: Vae, video: Tensor, tile: Tile | None, total: int) -> None:
    class StopAtTheSecond(Silent):
        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []

        def on_chunk(self, done: int, total: int) -> None:
            self.seen.append((done, total))

        def should_stop(self) -> bool:
            return len(self.seen) == 2

    hooks = StopAtTheSecond()
    with pytest.raises(Interrupted):
        encoded(vae, video, tile, hooks)
    assert hooks.seen == [(1, total), (2, total)]


def test_a_size_that_the_transformer_cannot_take_is_refused(vae: Vae) -> None:
    with pytest.raises(InputError, match="video is 648x64, expected multiples of 16; the nearest is 640x64"):
        vae.encode_chunks(torch.zeros(1, 3, 1, 64, 648), None, Silent())


def test_out_of_memory_takes_smaller_tiles(vae: Vae, video: Tensor) -> None:
    expected, tried = encoded(vae, video, SMALL), []

    def encode(tile: Tile | None) -> Iterator[Tensor]:
        tried.append(tile)
        return vae.encode_chunks(video, tile, Silent()) if tile else out_of_memory()

    def smaller(tile: Tile | None) -> Tile | None:
        return None if tile else SMALL

    def coded(code: object, report: Report, told: list[str]) -> Tensor:
        chunks = code_down_the_ladder("encode", code, None, smaller, report, lambda: None, told.append)
        return torch.cat(list(chunks), dim=2)

    report, told = Report(), []
    assert torch.equal(coded(encode, report, told), expected) and tried == [None, SMALL]
    (rung,) = report.decisions
    assert rung.degraded and (rung.asked, rung.chosen) == ("whole frames", "tiles of 384x384 pixels")
    assert rung.topic == "VAE encode after running out of memory" and told == [str(rung)]
    with pytest.raises(OutOfMemoryError, match=r"VAE's encode \(tiles of 384x384 pixels\), and there is nothing left"):
        coded(out_of_memory, Report(), [])


@pytest.mark.parametrize("tile", [None, Tile(height=20, width=24, overlap=8)])
def test_takes_less_memory_than_the_decode_that_it_is_planned_as(tile: Tile | None) -> None:
    """The released model on the meta device; 0.64 to 0.72 of a decode were counted."""
    with torch.device("meta"):
        module = WanVae(WAN21_VAE, TORCH).bfloat16()
        video = torch.empty(1, 3, 17, 8 * 24, 8 * 40)
    vae = Vae(Weights(module, lambda targets, on_progress: None, device="meta", dtype=torch.bfloat16), ())
    vae.weights.to_device()
    with LiveBytes() as counted:
        encoded(vae, video, tile)
    assert 0.5 < counted.peak / decode_bytes(WAN21_VAE, (5, 24, 40), 2, tile) < 0.75


def test_a_card_that_decodes_in_tiles_encodes_in_tiles(machine: object) -> None:
    card: Hardware = machine("h200", free_gib=5)
    plan = resolve_decode(preset("auto"), card, WAN21_VAE, (21, 90, 160))
    below = smaller_tiles(plan, WAN21_VAE, (21, 90, 160))(plan.tile)
    assert plan.tile and below and below.height * below.width < plan.tile.height * plan.tile.width
