"""`python -m miniature.train --output DIR`: train the miniature from nothing, on one GPU, and write it as it ships.

Three stages, each resumed where it stopped: the VAE, a bank of latents, the experts with their text encoder. Within a
time limit (`--limit-seconds`) a process saves its state and ends; the same command goes on. What is trained so far is
written at the end of every process, so that a lost machine costs at most the optimiser's state: `--take-up DIR` goes on
from written weights and their log.
"""

import argparse
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from miniature.training.bank import build_bank, load_bank
from miniature.training.experts import new_trainee, train_experts, validation_losses
from miniature.training.export import export, take_up
from miniature.training.journal import Journal, draw_curves
from miniature.training.machine import Machine
from miniature.training.pace import Deadline
from miniature.training.settings import FULL, FULL_MINUTES, SMOKE, Settings
from miniature.training.store import Store
from miniature.training.vae import VAE_DONE, train_vae
from miniature.vocabulary import train_vocabulary
from wan_core.models.tokenizer import Tokenizer
from wan_core.models.vae21 import WanVae

STAGES = ("vae", "bank", "experts")
# For what follows the last step of a process: averages, losses, files.
_RESERVE = 20.0


@dataclass(frozen=True, slots=True)
class Run:
    """One process of a training."""

    settings: Settings
    machine: Machine
    store: Store
    journal: Journal
    deadline: Deadline
    output: Path


def main() -> None:
    options = _parse()
    store = Store(options.work or options.output / "state")
    journal = Journal(store.folder / "training.jsonl")
    if options.take_up and not journal.path.exists():
        _take_up(options.take_up, store, journal)
    limit = None if options.limit_seconds is None else options.limit_seconds - _RESERVE
    machine = Machine.detect(compiles=not options.eager, records=not (options.eager or options.launch))
    run = Run(_settings(options), machine, store, journal, Deadline(limit), options.output)
    options.output.mkdir(parents=True, exist_ok=True)
    flags = {"compiles": str(machine.compiles), "records": str(machine.records)}
    journal.write("machine", name=machine.name, torch=torch.__version__, **flags)
    finished = train(run, options.stage)
    draw_curves(journal, options.output / "curves.png")
    shutil.copyfile(journal.path, options.output / journal.path.name)
    print("finished" if finished else "not finished: the same command goes on from here", flush=True)


def train(run: Run, last_stage: str = "experts") -> bool:
    """Run the stages up to `last_stage`; whether they are done."""
    vae = train_vae(run.settings, run.machine, run.store, run.journal, run.deadline)
    if vae is None:
        return False
    # Alone in the output until there is a whole model to write.
    shutil.copyfile(run.store.path(VAE_DONE), run.output / f"{VAE_DONE}.pt")
    if last_stage == "vae":
        return True
    vocabulary = _vocabulary(run)
    tokenizer = Tokenizer.from_bytes(vocabulary)
    if not build_bank(run.settings, vae, tokenizer, run.machine, run.store, run.deadline, run.journal):
        return False
    return last_stage == "bank" or _train_experts(run, vae, tokenizer, vocabulary)


def _train_experts(run: Run, vae: WanVae, tokenizer: Tokenizer, vocabulary: bytes) -> bool:
    trainee = new_trainee(run.settings, tokenizer, run.machine)
    bank = load_bank(run.settings.bank, run.machine, run.store)
    arguments = run.settings, trainee, bank, run.machine, run.store, run.journal, run.deadline
    average, finished = train_experts(*arguments)
    held_out = load_bank(run.settings.bank, run.machine, run.store, held_out=True)
    losses = validation_losses(trainee, average, held_out, run.settings, run.machine)
    run.journal.write("validation", **losses, finished=str(finished))
    origin = f"trained, seed {run.settings.seed}" + ("" if finished else ", not finished")
    export(run.output, vae, trainee, average, vocabulary, origin)
    (run.output / f"{VAE_DONE}.pt").unlink()
    return finished


def _vocabulary(run: Run) -> bytes:
    """The vocabulary of this training; kept, since another version of sentencepiece may give another."""
    if (kept := run.store.load("vocabulary", run.machine)) is not None:
        return bytes(kept.cpu().numpy())
    trained = train_vocabulary(run.machine.architecture.text_encoder.vocab_size)
    run.store.save("vocabulary", torch.frombuffer(bytearray(trained), dtype=torch.uint8))
    return trained


def _take_up(folder: Path, store: Store, journal: Journal) -> None:
    shutil.copyfile(folder / journal.path.name, journal.path)
    last = journal.records("experts")[-1:]
    take_up(folder, {"step": last[0]["step"], "spent": last[0]["seconds"]} if last else None, store)


def _settings(options: argparse.Namespace) -> Settings:
    settings = SMOKE if options.smoke else FULL.within(options.minutes)
    return replace(settings, seed=options.seed).with_changes(options.set)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m miniature.train", description="Train the miniature Wan 2.2 model.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the weights, the log and the curves")
    parser.add_argument("--work", type=Path, help="folder for the state between processes (default: OUTPUT/state)")
    parser.add_argument("--minutes", type=float, default=FULL_MINUTES, help="time on one H200 (default: %(default)g)")
    parser.add_argument("--limit-seconds", type=float, help="save and end this process before so many seconds")
    parser.add_argument("--stage", choices=STAGES, default="experts", help="last stage to run (default: experts)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER",
                        help="another setting, for example vae.num_steps=4000")  # fmt: skip
    parser.add_argument("--take-up", type=Path, metavar="DIR", help="go on from weights and log written by another run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="compile and record nothing")
    parser.add_argument("--launch", action="store_true", help="launch every step instead of replaying a recorded one")
    parser.add_argument("--smoke", action="store_true", help="run every stage in seconds on a CPU; learns nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
