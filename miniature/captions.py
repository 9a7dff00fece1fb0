"""What is said about a scene: a small grammar with several wordings for everything, and captions for evaluation.

In training a caption may leave things out, as people do: the rest of the clip is then the model's to choose. The
captions of an evaluation name number, colour, shape and motion, since these are what the judge reads.
"""

from random import Random

from .scenes import DIRECTIONS, Scene, draw_scene

_NUMBERS = {1: ("a", "one", "a single"), 2: ("two", "a pair of"), 3: ("three",)}
_PLURALS = {"cross": "crosses"}
# (of one object, of several)
_MOTION_PHRASES = {
    "left": (
        ("moving left", "sliding to the left", "drifting left", "moves to the left", "slides left"),
        ("moving left", "sliding to the left", "drifting left", "move to the left", "slide left"),
    ),
    "right": (
        ("moving right", "sliding to the right", "drifting right", "moves to the right", "slides right"),
        ("moving right", "sliding to the right", "drifting right", "move to the right", "slide right"),
    ),
    "up": (
        ("moving up", "rising", "sliding upward", "moves up", "rises"),
        ("moving up", "rising", "sliding upward", "move up", "rise"),
    ),
    "down": (
        ("moving down", "falling", "sliding downward", "moves down", "falls"),
        ("moving down", "falling", "sliding downward", "move down", "fall"),
    ),
    "still": (("standing still", "not moving", "stays still"), ("standing still", "not moving", "stay still")),
    "bouncing": (("bouncing up and down", "bouncing", "bounces"), ("bouncing up and down", "bouncing", "bounce")),
    "circling": (("moving in a circle", "circling around"), ("moving in a circle", "circling around")),
    "spinning": (
        ("spinning", "rotating", "turning around", "spins"),
        ("spinning", "rotating", "turning around", "spin"),
    ),
    "growing": (("growing", "getting bigger", "grows"), ("growing", "getting bigger", "grow")),
    "shrinking": (("shrinking", "getting smaller", "shrinks"), ("shrinking", "getting smaller", "shrink")),
}
_CAMERA_PHRASES = {
    "zoom in": ("the camera zooms in", "camera zooming in"),
    "zoom out": ("the camera zooms out", "camera zooming out"),
    "pan left": ("the camera pans left", "camera panning left"),
    "pan right": ("the camera pans right", "camera panning right"),
}
_PATTERN_PHRASES = {
    "plain": ("{0} background", "plain {0} background"),
    "gradient": ("{0} gradient background", "{0} gradient"),
    "striped": ("striped {0} background", "{0} background with stripes"),
    "checkered": ("checkered {0} background", "{0} checkered background"),
}


def describe(scene: Scene, rng: Random) -> str:
    """A caption as training shows it: any wording, and less than everything that could be said."""
    draw = rng.random
    subject = _subject(scene, rng, says_size=draw() < 0.6, says_style=draw() < 0.8)
    motion = _motion(scene, rng, says_speed=draw() < 0.8) if draw() < 0.93 else ""
    background = _background(scene, rng, says_pattern=draw() < 0.8) if draw() < 0.85 else ""
    return _sentence(subject, motion, background, _camera(scene, rng), rng)


def describe_fully(scene: Scene, rng: Random) -> str:
    """A caption that names everything a caption can."""
    subject = _subject(scene, rng, says_size=True, says_style=True)
    motion = _motion(scene, rng, says_speed=True)
    return _sentence(subject, motion, _background(scene, rng, says_pattern=True), _camera(scene, rng), rng)


def held_out_captions(
    num_captions: int, seed: int, *, motions: tuple[str, ...] = tuple(DIRECTIONS)
) -> list[tuple[Scene, str]]:
    """Scenes whose (colour, shape, motion) never occurs in training, each with a caption that names it.

    The direction of motion is what the judge reads off the centroids, hence the default for `motions`; for the same
    reason the camera stands still.
    """
    rng = Random(f"held out {seed}")
    found: list[tuple[Scene, str]] = []
    while len(found) < num_captions:
        scene = draw_scene(rng, held_out=True, motions=motions)
        if scene.camera == "fixed":
            found.append((scene, describe_fully(scene, rng)))
    return found


def _subject(scene: Scene, rng: Random, *, says_size: bool, says_style: bool) -> str:
    noun = scene.shape if scene.count == 1 else _PLURALS.get(scene.shape, scene.shape + "s")
    words = [
        scene.size if says_size else "",
        scene.style if says_style else "",
        scene.colour,
        noun,
    ]
    words = [word for word in words if word]
    number = rng.choice(_NUMBERS[scene.count])
    if number == "a" and words[0][0] in "aeiou":
        number = "an"
    return " ".join((number, *words))


def _motion(scene: Scene, rng: Random, *, says_speed: bool) -> str:
    phrase = rng.choice(_MOTION_PHRASES[scene.motion][scene.count > 1])
    if not scene.speed or not says_speed:
        return phrase
    return f"{scene.speed} {phrase}" if rng.random() < 0.5 else f"{phrase} {scene.speed}"


def _background(scene: Scene, rng: Random, *, says_pattern: bool) -> str:
    phrase = rng.choice(_PATTERN_PHRASES[scene.pattern]) if says_pattern else "{0} background"
    phrase = phrase.format(scene.background)
    article = "an" if phrase[0] in "aeiou" else "a"
    return f"{article} {phrase}"


def _camera(scene: Scene, rng: Random) -> str:
    return "" if scene.camera == "fixed" else rng.choice(_CAMERA_PHRASES[scene.camera])


def _sentence(subject: str, motion: str, background: str, camera: str, rng: Random) -> str:
    body = f"{subject} {motion}".strip()
    if background and rng.random() < 0.2:
        body = f"{background}, {body}"
    elif background:
        body = f"{body} {rng.choice(('on', 'over', 'in front of'))} {background}"
    if rng.random() < 0.15:
        body = f"a video of {body}"
    return f"{body}, {camera}" if camera else body
