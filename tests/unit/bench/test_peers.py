"""What is known of a checkout from its files, and code that cannot be imported."""

from pathlib import Path

import pytest

from tests.unit.bench.fakes import TASK
from wan_core.bench.peers.checkout import commit_of, importing
from wan_core.bench.peers.reference import ReferenceCandidate
from wan_core.errors import InputError, UnsupportedError

COMMIT = "783545f689a0c1d2e3f405162738495a6b7c8d9e"
KNOWN, UNKNOWN = f"commit {COMMIT[:12]}", "a copy that does not tell its commit"


def checkout(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / ".git" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("files", "commit"),
    [
        ({"HEAD": COMMIT}, KNOWN),
        ({"HEAD": "ref: refs/heads/main", "refs__heads__main": COMMIT}, KNOWN),
        ({"HEAD": "ref: refs/heads/main", "packed-refs": f"# pack-refs\n{COMMIT} refs/heads/main"}, KNOWN),
        ({"HEAD": "ref: refs/heads/main", "packed-refs": f"{COMMIT} refs/heads/other"}, UNKNOWN),
        ({"HEAD": "ref: refs/heads/main"}, UNKNOWN),
        ({}, UNKNOWN),
    ],
)
def test_commit(tmp_path, files, commit):
    assert commit_of(checkout(tmp_path, **files)) == commit


def test_what_a_peer_lacks_is_one_sentence():
    with pytest.raises(UnsupportedError, match="ComfyUI cannot be imported here: No module named 'nothing_like_it'"):
        with importing("ComfyUI"):
            import nothing_like_it  # noqa: F401


def test_a_broken_checkout_is_a_sentence_at_its_turn_and_not_before(tmp_path):
    (tmp_path / "wan/modules").mkdir(parents=True)
    (tmp_path / "wan/modules/model.py").write_text("import nothing_like_it\n", encoding="utf-8")
    (tmp_path / "wan/modules/attention.py").touch()
    candidate = ReferenceCandidate("reference", tmp_path, frozenset())
    with pytest.raises(UnsupportedError, match="nothing_like_it"):
        candidate.prepare("step", TASK)


def test_the_references_autocast_needs_a_gpu(tmp_path):
    (tmp_path / "wan/modules").mkdir(parents=True)
    (tmp_path / "wan/modules/model.py").touch()
    candidate = ReferenceCandidate("reference+bf16", tmp_path, frozenset({"bf16"}))
    with pytest.raises(InputError, match=r"reference\+bf16 needs an NVIDIA GPU"):
        candidate.prepare("step", TASK)
