"""The evaluation behind the model card, from its command line to its files, small and short."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from miniature import evaluate
from tests.trained.pictures import MODEL


def test_an_evaluation_measures_the_judge_the_vae_and_every_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {name: chosen.with_changes(num_steps=2) for name, chosen in evaluate.RECIPES.items()}
    monkeypatch.setattr(evaluate, "RECIPES", short)
    monkeypatch.setattr(evaluate, "_OFFICIAL", short["guidance 4/3"])
    # A process of its own for the judge would take longer than everything else.
    monkeypatch.setattr(evaluate, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    size = ["--captions", "2", "--real-clips", "1", "--batch", "2", "--side", "64", "--frames", "5", "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["evaluate", str(MODEL), "--output", str(tmp_path), *size])
    evaluate.main()
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["captions"] == 2 and figures["vae_psnr"] > 25  # 34.6 dB at the size that was trained
    rendered = ["rendered clips", "rendered clips through the VAE"]
    assert list(figures["adherence"]) == [*rendered, *evaluate.RECIPES, "guidance 4/3, other kinds of motion"]
    for row in figures["adherence"].values():
        assert all(0 <= row[aspect] <= 1 for aspect in (*evaluate.ASPECTS, "all"))
    assert evaluate.to_table(figures) in capsys.readouterr().out
    assert (tmp_path / "contact_sheet.png").stat().st_size > 0
