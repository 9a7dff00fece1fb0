"""`python -m miniature.picture MODEL --output FILE`: the contact sheet that the main README shows.

Each prompt is a run of its own with seed 0 and the recipe of the demo, whose videos are the first three.
"""

import argparse
from pathlib import Path

import numpy as np

from miniature.contact_sheet import draw_contact_sheet
from miniature.evaluate import Evaluation
from wan_core.checkpoint.find import find_model
from wan_core.pipeline import WanPipeline
from wan_core.profiles import preset
from wan_core.recipes import VideoSize, recipe

PROMPTS = (
    "a large red circle moving right on a black background",
    "two green squares falling on a beige background",
    "three cyan stars moving right on a striped navy background",
    "a purple ring moving up on a mint background",
    "a large orange diamond moving left on a gray gradient background",
    "two glowing green circles moving up on a checkered navy background",
    "a blue triangle bouncing on a white background",
    "a yellow star spinning on a navy background",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m miniature.picture", description="Draw the README's contact sheet.")
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--output", type=Path, default=Path("output/miniature.png"), help="(default: %(default)s)")
    options = parser.parse_args()
    pipeline = WanPipeline(find_model(options.model), preset("auto"))
    alone = Evaluation(pipeline, VideoSize(width=128, height=128, num_frames=33), batch=1, seed=0)
    videos = np.concatenate([alone.videos(recipe("preview"), [prompt]) for prompt in PROMPTS])
    draw_contact_sheet(options.output, PROMPTS, videos)


if __name__ == "__main__":
    main()
