"""`plan`: what a run would do on this machine, with reasons, times and memory; runs nothing."""

import argparse

from ..pipeline import WanPipeline
from . import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model_options(parser)
    options.add_lora_options(parser)
    options.add_request_options(parser)
    options.add_profile_options(parser)


def run(arguments: argparse.Namespace) -> int:
    profile = options.profile(arguments)
    request, size = options.request(arguments)
    pipeline = WanPipeline(options.model_files(arguments), profile, device=arguments.device)
    pipeline.loras = options.loras(arguments, pipeline.pair.spec)
    plan = pipeline.plan(request, size)
    print("\n".join((*pipeline.pair.notes, plan.to_text(), pipeline.estimate(plan).to_text())))
    return 0
