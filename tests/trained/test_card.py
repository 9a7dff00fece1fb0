"""What the model card says is what was measured, and what the settings train is what was trained."""

import json
import re

import pytest

from miniature.training.journal import Journal
from miniature.training.settings import FULL
from tests.trained.pictures import MODEL

CARD = (MODEL / "README.md").read_text(encoding="utf-8")
FIGURES = json.loads((MODEL / "figures.json").read_text(encoding="utf-8"))
LOG = Journal(MODEL / "training.jsonl")
ASPECTS = ("colour", "shape", "count", "motion", "all")


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)]


def test_the_table_of_the_card_is_what_was_measured() -> None:
    table = CARD.partition("| all four |")[2].splitlines()[2 : 2 + len(FIGURES["adherence"])]
    shown = [numbers(line)[-len(ASPECTS) :] for line in table]
    assert shown == [
        [pytest.approx(100 * row[aspect]) for aspect in ASPECTS] for row in FIGURES["adherence"].values()
    ]  # fmt: skip


def test_the_card_has_the_losses_of_the_log() -> None:
    last = LOG.records("validation")[-1]
    assert last["finished"] == "True"
    for value in (f"{last['high']:.3f}** (high)", f"{last['low']:.3f}** (low)"):
        assert value in CARD
    assert f"{LOG.records('vae quality')[-1]['psnr']:.1f} dB** in training" in CARD
    assert f"{FIGURES['vae_psnr']:.1f} dB on the 200" in CARD


def test_the_settings_train_as_many_steps_as_the_shipped_run() -> None:
    for stage, options in (("vae", FULL.vae), ("experts", FULL.experts)):
        assert 0 <= options.num_steps - LOG.records(stage)[-1]["step"] < FULL.log_every


def test_guidance_and_both_experts_matter() -> None:
    rows = FIGURES["adherence"]
    best = rows["guidance 4/3"]
    assert min(rows["rendered clips"].values()) >= 0.97 and FIGURES["vae_psnr"] >= 30
    assert best["colour"] >= 0.85 and best["shape"] >= 0.75 and best["motion"] >= 0.75
    assert rows["guidance 1"]["all"] < best["all"] - 0.2
    assert max(rows[f"{expert}-noise expert alone"]["all"] for expert in ("high", "low")) < 0.1
