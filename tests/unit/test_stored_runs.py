"""A small model with weights that stay as their file stores them: the same latent, in half of the memory."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from tests.small_model import TRANSFORMER, write_small_model
from tests.unit.checkpoint import scaled_files as scaled
from tests.unit.checkpoint.gguf_files import write_gguf
from tests.unit.recovery.conftest import out_of_memory
from tests.unit.test_placements import REQUEST, SIZE, NothingOnTheHost, lora
from wan_core import build
from wan_core.checkpoint.find import find_model
from wan_core.checkpoint.stream import Reader
from wan_core.compilation import Region
from wan_core.linear.stored import StoredLinear
from wan_core.offload.weights import Place
from wan_core.pipeline import RunPlan, WanPipeline
from wan_core.placement import Placement
from wan_core.profiles import preset
from wan_core.report import Report
from wan_core.sample import Conditioning, SampleResult
from wan_core.specs import Expert

PLACEMENTS = [
    Placement(policy="resident", storage="file"),
    Placement(policy="experts", storage="file"),
    Placement(policy="stream", streamed_blocks=2, storage="file"),
    Placement(policy="stream", streamed_blocks=TRANSFORMER.num_layers, storage="file"),
]
FORMATS: dict[str, Callable[[Path, dict[str, Tensor]], object]] = {
    "fp8 e4m3, a scale for each tensor": scaled.comfy_scaled,
    "fp8 e5m2, no scales": lambda path, weights: scaled.kijai_plain(path, weights, scaled.E5M2),
    "int8, a scale for each row": lambda path, weights: scaled.comfy_quant(
        path, weights, "int8_tensorwise", rows=True, in_metadata=False
    ),
    "Q8_0": lambda path, weights: write_gguf(path.with_suffix(".gguf"), weights, GGMLQuantizationType.Q8_0),
}
FP8 = "fp8 e4m3, a scale for each tensor"


def write_encoded(folder: Path, name: str) -> Path:
    """A small model whose experts are stored in a format."""
    write_small_model(folder)
    for path in sorted((folder / "diffusion_models").iterdir()):
        weights = {name: tensor.float() for name, tensor in load_file(path).items()}
        path.unlink()
        FORMATS[name](path, weights)
    return folder


@pytest.fixture(scope="module", params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoded(tmp_path_factory.mktemp("small_model"), request.param)


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoded(tmp_path_factory.mktemp("small_model"), FP8)


@pytest.fixture(scope="module")
def conditioning() -> Conditioning:
    draw = torch.Generator().manual_seed(1)
    texts = (torch.randn(1, 8, TRANSFORMER.text_dim, generator=draw) for _ in range(2))
    return Conditioning(positive=next(texts), negative=next(texts))


class Session:
    """One pipeline that keeps its weights in one way and in one place."""

    def __init__(self, folder: Path, conditioning: Conditioning, storage: str, **settings: str) -> None:
        profile = preset("cpu").with_settings({"precision.storage": storage, **settings})
        self.pipeline = WanPipeline(find_model(folder), profile, device="cpu")
        self.conditioning = conditioning
        self.placement = Placement(policy="resident", storage=storage)
        self._folder = folder

    def plan(self) -> RunPlan:
        plan = self.pipeline.plan(REQUEST, SIZE)
        binding = replace(plan.experts.binding, placement=self.placement)
        return replace(plan, experts=replace(plan.experts, binding=binding))

    def run(self, strength: float = 0.0, **options: object) -> Tensor:
        return self.result(strength, **options).latent

    def result(self, strength: float = 0.0, **options: object) -> SampleResult:
        self.pipeline.loras = ()
        if strength:
            self.pipeline.add_lora(lora(self._folder), strength_high=strength, strength_low=-strength)
        return self.pipeline.sample(self.plan(), self.conditioning, **options)

    @property
    def blocks(self) -> int:
        """Bytes of one expert's blocks."""
        weights = self.pipeline._experts.weights[Expert.HIGH]
        return sum(unit.nbytes for unit in weights.units if unit.block is not None)


@pytest.fixture(scope="module")
def expected(folder: Path, conditioning: Conditioning) -> Tensor:
    return Session(folder, conditioning, "compute").run()


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda each: f"{each.policy} {each.streamed_blocks}")
def test_every_placement_gives_the_latent_of_decoded_weights(folder, conditioning, expected, placement):
    session = Session(folder, conditioning, "file")
    session.placement = placement
    assert torch.equal(session.run(), expected)
    built = session.pipeline._experts
    for expert in Expert:
        kept = [each for each in built.transformers[expert].modules() if isinstance(each, StoredLinear)]
        assert len(kept) == 10 * TRANSFORMER.num_layers
    if placement.policy != "resident":
        with NothingOnTheHost(lambda: built.weights.values()) as device:
            assert torch.equal(session.run(), expected)
        assert device.seen > 500


@pytest.mark.parametrize("placement", PLACEMENTS[:3], ids=lambda each: f"{each.policy} {each.streamed_blocks}")
def test_what_was_evicted_comes_back_as_it_was_stored(fp8, conditioning, placement):
    session = Session(fp8, conditioning, "file")
    session.placement = placement
    expected = session.run()
    weights = session.pipeline._experts.weights.values()
    copies = sum(each.bytes_on_host for each in weights)
    for each in weights:
        each.leave_device()
    assert sum(each.bytes_on_host for each in weights) == copies
    assert torch.equal(session.run(), expected)


def test_the_weights_take_half_on_the_device_and_on_the_host(fp8, conditioning):
    """Matrices are nearly all of a block; the rest of this small model is not."""
    held = {}
    for storage in ("compute", "file"):
        session = Session(fp8, conditioning, storage, **{"precision.weights": "bfloat16"})
        session.placement = Placement(policy="experts", storage=storage)
        session.run()
        weights = session.pipeline._experts.weights
        rest = sum(unit.nbytes for unit in weights[Expert.HIGH].units if unit.block is None)
        assert (weights[Expert.HIGH].bytes_on_device, weights[Expert.LOW].bytes_on_host) == (0, rest + session.blocks)
        assert weights[Expert.LOW].bytes_on_device == rest + session.blocks
        held[storage] = session.blocks
    assert 0.5 <= held["file"] / held["compute"] <= 0.56


@pytest.mark.parametrize("application", ["beside", "merged"])
def test_loras_do_what_they_do_to_decoded_weights(fp8, conditioning, application):
    """Merged ones change layers, which are decoded then and have nothing to keep."""
    settings = {"lora.application": application}
    expected = Session(fp8, conditioning, "compute", **settings).run(0.5)
    for placement in (PLACEMENTS[0], PLACEMENTS[2]):
        session = Session(fp8, conditioning, "file", **settings)
        session.placement = placement
        assert not torch.equal(session.run(1.0), expected)
        assert torch.equal(session.run(0.5), expected)


def test_a_lora_and_another_strength_read_no_weights_again(fp8, conditioning, monkeypatch):
    session, read = Session(fp8, conditioning, "file"), []
    session.run()
    fill = Reader.fill
    monkeypatch.setattr(Reader, "fill", lambda self, info, target: (read.append(info.file), fill(self, info, target)))
    for strength in (1.0, 0.5, 0.0):
        session.run(strength)
    assert read and all("loras" in file.parts for file in read)


def test_another_setting_builds_anew_and_says_so(fp8, conditioning):
    session = Session(fp8, conditioning, "compute")
    first = session.run()
    before = session.pipeline._experts
    session.pipeline.profile = session.pipeline.profile.with_settings({"precision.storage": "file"})
    session.placement = PLACEMENTS[0]
    report = Report()
    assert torch.equal(session.run(report=report), first)
    assert session.pipeline._experts is not before
    assert all(weights.place is Place.FILE for weights in before.weights.values()), "not both at once"
    told = {decision.topic: str(decision) for decision in report.decisions}
    assert "file (float8_e4m3fn in 40 of 46 linear layers, decoded before each product" in told["weight storage"]
    assert told["weights of the high-noise expert"].startswith(
        "weights of the high-noise expert: float8_e4m3fn in 40 of 46 linear layers, float32 in the others"
    )


def test_another_placement_takes_over_what_is_loaded(fp8, conditioning, monkeypatch):
    session, read = Session(fp8, conditioning, "file"), []
    expected = session.run()
    fill = Reader.fill
    monkeypatch.setattr(Reader, "fill", lambda self, info, target: (read.append(info), fill(self, info, target)))
    for placement in (*PLACEMENTS[1:], PLACEMENTS[0]):
        session.placement = placement
        assert torch.equal(session.run(), expected), placement
    assert not read


def test_out_of_memory_is_a_step_down_with_the_same_weights(fp8, conditioning):
    session = Session(fp8, conditioning, "file", **{"guidance.execution": "batched"})
    session.placement = PLACEMENTS[0]
    expected = session.run()
    built = session.pipeline._experts
    block, calls = built.transformers[Expert.LOW].blocks[3], []

    def fail_once(module: object, inputs: object, output: object) -> None:
        calls.append(module)
        if len(calls) == 1:
            out_of_memory()

    handle = block.register_forward_hook(fail_once)
    result = session.result()
    handle.remove()
    (rung,) = (each for each in result.report.decisions if each.topic == "out of memory")
    assert "sequential guidance" in rung.chosen and len(calls) > 1
    assert (result.latent - expected).norm() <= 1e-5 * expected.norm()
    assert torch.equal(session.run(), expected)


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Region]]:
    """On a CPU a plan compiles nothing: the region that the build makes is told to, in the mode "default".

    Everything is traced and taken apart as for Inductor, whose C++ takes half a minute: `test_storage.py` has a layer.
    """
    made: list[Region] = []

    def region(mode: str) -> Region:
        made.append(Region("default", backend="aot_eager"))
        return made[-1]

    torch._dynamo.reset()
    monkeypatch.setattr(build, "Region", region)
    yield made
    torch._dynamo.reset()


def test_compiled_blocks_decode_as_they_do_uncompiled(fp8, conditioning, regions):
    latents = [Session(fp8, conditioning, storage).run() for storage in ("compute", "file")]
    assert [(region.mode, region.rejected) for region in regions] == [("default", [])] * 2
    assert torch.equal(*latents)


# A scale that is a number, and blocks that are taken apart.
@pytest.mark.parametrize("folder", [FP8, "Q8_0"], indirect=True)
def test_compiled_layers_share_one_graph(folder, conditioning, monkeypatch):
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(build, "Region", lambda mode: Region("default", backend=counter))
    session = Session(folder, conditioning, "file")
    for placement in PLACEMENTS[:3]:
        session.placement = placement
        session.run()
    torch._dynamo.reset()
    assert counter.frame_count == 1
