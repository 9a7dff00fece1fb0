"""`bench` on the command line: toy models on the CPU, real peers where they are, files, and mistakes.

The reference implementation takes part where WAN22_PATH names its checkout; ComfyUI does in tests/host.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.unit.bench.fakes import Fake, out_of_memory
from wan_core.__main__ import main
from wan_core.bench import chart, choose
from wan_core.bench.choose import Peer


def bench(*arguments: str) -> int:
    return main(["bench", "--tiny", "--device", "cpu", "--steps", "1", *arguments])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer "fake" that never fits, as `--against fake`."""
    peer = Peer("Fake", ("large",), lambda title, root, options: Fake(title, builds=[out_of_memory()] * 9), False)
    monkeypatch.setattr(choose, "PEERS", MappingProxyType({**choose.PEERS, "fake": peer}))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything at once, against another profile and diffusers; the folder of what it wrote."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("bench")
    files = ("--out", f"{folder}/bench.json", "--chart", f"{folder}/bench.png", "--trace", f"{folder}/trace.json")
    against = ("--against", "cpu:guidance.execution=batched", "--against", "diffusers")
    assert bench("--profile", "cpu", *against, "--what", "step,vae,text", *files) == 0
    return folder


def contestants(path: Path, part: str) -> dict[str, dict]:
    data = json.loads(path.read_text(encoding="utf-8"))
    return {row["name"]: row for row in data["parts"][part]["contestants"]}


def test_all_compute_the_same(outcome):
    step = contestants(outcome / "bench.json", "step")
    assert list(step) == ["cpu", "cpu:guidance.execution=batched", "diffusers"]
    assert step["cpu"]["difference"] is None
    assert max(step[name]["difference"] for name in list(step)[1:]) < 1e-4


def test_every_part_has_times_and_the_step_a_breakdown_that_adds_up(outcome):
    for part, names in (("step", 3), ("vae", 2), ("text", 2)):
        rows = contestants(outcome / "bench.json", part)
        assert len(rows) == names
        assert all(row["median_seconds"] > 0 and row["cold_seconds"] > 0 for row in rows.values())
    for row in contestants(outcome / "bench.json", "step").values():
        breakdown = row["breakdown"]
        assert sum(breakdown["seconds"].values()) == pytest.approx(breakdown["whole"])
        assert breakdown["seconds"].get("other", 0.0) < 0.05 * breakdown["whole"]
        assert row["tflops"] > 0


def test_the_result_names_the_machine_the_command_and_the_whole_run(outcome):
    data = json.loads((outcome / "bench.json").read_text(encoding="utf-8"))
    assert data["command"].startswith("python -m wan_core bench --profile cpu --against cpu:guidance.execution=batched")
    assert data["machine"]["hardware"]["device"] == "cpu"
    assert set(data["whole_run"]["seconds"]) == {"cpu", "cpu:guidance.execution=batched"}
    assert data["ceilings"]["products"]["float32"] > 0


def test_the_other_files_are_there(outcome):
    names = {path.name for path in outcome.iterdir()}
    traces = {"trace.json", "trace-cpu-guidance-execution-batched.json", "trace-diffusers.json"}
    assert names == {"bench.json", *traces, *(["bench.png"] if find_spec("matplotlib") else [])}


@pytest.mark.skipif(not os.environ.get("WAN22_PATH"), reason="WAN22_PATH names no checkout of Wan-Video/Wan2.2")
def test_the_reference_computes_the_same(tmp_path):
    pytest.importorskip("diffusers")  # its transformer is one of diffusers' models
    reference = f"reference={os.environ['WAN22_PATH']}"
    out = tmp_path / "bench.json"
    assert bench("--profile", "cpu", "--against", reference, "--what", "step,vae,text", "--out", str(out)) == 0
    for part in ("step", "vae", "text"):
        row = contestants(out, part)["Wan 2.2 reference"]
        assert row["problem"] is None
        assert row["difference"] < 1e-4
    assert os.environ["WAN22_PATH"] not in out.read_text(encoding="utf-8")
    operations = contestants(out, "step")["Wan 2.2 reference"]["breakdown"]["seconds"]
    assert {"self attention", "cross attention", "linear", "norm and modulation", "RoPE"} <= operations.keys()


@pytest.mark.gpu
def test_on_a_gpu_kernels_are_divided_and_memory_is_counted(tmp_path):
    out, memory = tmp_path / "bench.json", tmp_path / "memory.json"
    arguments = ("--what", "step,vae,text", "--out", str(out), "--memory", str(memory))
    against = ("--against", "auto:guidance.execution=sequential", "--against", "diffusers")
    assert main(["bench", "--tiny", "--steps", "2", "--profile", "auto", *against, *arguments]) == 0
    for name, row in contestants(out, "step").items():
        seconds = row["breakdown"]["seconds"]
        assert row["problem"] is None, name
        assert sum(seconds.values()) == pytest.approx(row["breakdown"]["whole"])
        busy = sum(value for operation, value in seconds.items() if operation != "idle")
        assert 0 < busy < row["breakdown"]["whole"]
        assert seconds.get("other", 0.0) < 0.05 * busy
        assert {"self attention", "cross attention", "linear", "norm and modulation", "RoPE"} <= seconds.keys()
        assert 0 < row["weight_bytes"] < row["peak_bytes"]
        assert (row["difference"] or 0.0) < 0.2
    assert json.loads(memory.read_text(encoding="utf-8"))["segments"]


def test_who_does_not_fit_is_a_row_and_the_others_are_measured(fake, capsys):
    assert bench("--profile", "cpu", "--against", "fake", "--no-breakdown") == 0
    out = capsys.readouterr().out
    assert "  Fake: does not fit: CUDA out of memory. Tried to allocate 57.00 GiB.\n" in out
    assert "  cpu: float32" in out


def test_the_step_alone_is_measured_unless_more_is_asked_for(capsys):
    assert bench("--profile", "cpu", "--no-breakdown", "--layers", "1", "--size", "32x32x1") == 0
    out, err = capsys.readouterr()
    assert "32x32x1 (4 tokens), random weights, 1 layers of width 192" in out
    assert ("VAE decode" in out, "text encoding" in out, "where the time" in out) == (False, False, False)
    assert err.splitlines()[-1].startswith("step: cpu, 1 of 1: ")


def test_without_matplotlib_the_rest_is_done(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(chart, "find_spec", lambda name: None)
    assert bench("--profile", "cpu", "--no-breakdown", "--chart", str(tmp_path / "chart.png")) == 0
    assert "no chart will be drawn: matplotlib is not installed" in capsys.readouterr().err
    assert not (tmp_path / "chart.png").exists()


def test_a_run_that_is_cut_short_leaves_what_it_measured(monkeypatch, tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    peer = Peer("Fake", (), lambda title, root, options: Fake(title, builds=[interrupt]), False)
    monkeypatch.setattr(choose, "PEERS", MappingProxyType({"fake": peer}))
    out = tmp_path / "bench.json"
    assert bench("--profile", "cpu", "--against", "fake", "--no-breakdown", "--out", str(out)) == 130
    assert contestants(out, "step")["cpu"]["cold_seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--against", "reference=nowhere"), "'nowhere' is no checkout of the reference implementation"),
        (("--against", "exakt"), "did you mean 'exact'?"),
        (("--against", "auto"), "'auto' takes part twice"),
        (("--what", "steps"), "did you mean 'step'?"),
        (("--size", "1280x720"), "--size is '1280x720', expected width, height and frames such as 1280x720x81"),
        (("--size", "100x64x5"), "width is 100, expected a multiple of 16"),
        (("--out", "bench.txt"), "expected a name ending in .json"),
        (("--chart", "bench.jpg"), "expected a name ending in .png"),
        (("--memory", "memory.json"), "--memory needs an NVIDIA GPU, this is cpu"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_runs(arguments, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert bench(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert sentence in err


@pytest.mark.parametrize("option", ["--steps", "--layers"])
def test_at_least_one(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench(option, "0")
    assert stopped.value.code == 2
    assert "0 is too few, expected at least 1" in capsys.readouterr().err


def test_nothing_of_a_peer_is_imported_without_being_asked_for():
    assert [name for name in sys.modules if name.partition(".")[0] == "comfy"] == []
