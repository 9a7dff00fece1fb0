"""The miniature's sentencepiece vocabulary, and the captions it is trained on.

T5's conventions: padding 0, end of sequence 1, unknown 2, no beginning of sequence. Words of the captions become whole
pieces, any other Latin word falls into smaller ones, and every other character into its UTF-8 bytes, so that no prompt
fails to tokenise. Training is deterministic: fixed captions, one thread, no sampling.
"""

import io
import random
from collections.abc import Iterator

from wan_core.specs import DEFAULT_NEGATIVE_PROMPT

SIZES = ("small", "medium", "large", "tiny", "big", "huge")
COLOURS = (
    "red", "green", "blue", "yellow", "orange", "purple", "pink", "white", "black", "gray", "brown", "cyan", "magenta",
    "teal", "gold", "silver", "beige", "turquoise", "violet", "crimson", "navy", "lime", "mint", "lavender", "dark",
    "light", "bright",
)  # fmt: skip
SHAPES = (
    "circle", "square", "triangle", "star", "ring", "cross", "diamond", "rectangle", "ellipse", "hexagon", "pentagon",
    "heart", "arrow", "crescent", "ball", "cube", "disc", "dot", "line", "stripe", "bar", "box", "shape", "object",
)  # fmt: skip
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "single", "pair", "several", "many", "few", "some", "another",
)  # fmt: skip
DIRECTIONS = (
    "left", "right", "up", "down", "upward", "downward", "leftward", "rightward", "diagonally", "forward", "backward",
    "clockwise", "counterclockwise", "horizontally", "vertically", "around", "inward", "outward", "sideways",
)  # fmt: skip
MOTIONS = (
    "moves", "moving", "slides", "sliding", "drifts", "drifting", "bounces", "bouncing", "rotates", "rotating",
    "spins", "spinning", "grows", "growing", "shrinks", "shrinking", "pulses", "pulsing", "orbits", "orbiting",
    "falls", "falling", "rises", "rising", "rolls", "rolling", "swings", "swinging", "zigzags", "waves", "floats",
    "floating", "flies", "flying", "jumps", "jumping", "blinks", "fades", "appears", "vanishes", "stays", "still",
    "stops", "turns", "turning", "crosses", "passes", "circles", "shakes", "circling", "standing", "stay", "getting",
    "slide", "drift", "move", "rise", "fall", "bounce", "spin", "rotate", "grow", "shrink", "bigger", "smaller",
)  # fmt: skip
SPEEDS = ("slowly", "quickly", "fast", "slow", "steadily", "smoothly", "gently", "suddenly", "speed")
BACKGROUNDS = (
    "plain", "gradient", "striped", "checkered", "dotted", "noisy", "starry", "grid", "sky", "sea", "grass", "sand",
    "night", "snow", "water", "wall", "floor", "paper", "cloudy", "background", "scene",
)  # fmt: skip
CAMERA = (
    "camera", "pans", "panning", "zooms", "zooming", "in", "out", "tilts", "tilting", "static", "shot", "view", "frame",
    "close", "wide", "tracking", "follows", "fixed", "angle", "handheld",
)  # fmt: skip
STYLES = (
    "flat", "outlined", "soft", "blurred", "glowing", "shaded", "cartoon", "sketch", "neon", "pastel", "grainy",
    "minimal", "pixelated", "watercolor", "vivid", "colorful", "monochrome", "style", "video", "animation", "clip",
    "picture", "image", "film", "quality", "detailed", "sharp", "smooth", "transparent", "shadow", "texture",
)  # fmt: skip
POSITIONS = (
    "top", "bottom", "center", "middle", "corner", "edge", "side", "above", "below", "behind", "beside", "between",
    "near", "front", "inside", "over", "under", "across", "through", "toward", "towards", "away", "along", "onto",
    "into",
)  # fmt: skip
COMMON = (
    "a", "an", "the", "and", "or", "of", "on", "in", "to", "from", "with", "without", "while", "then", "at", "by",
    "for", "is", "are", "it", "its", "that", "this", "there", "two", "not", "no", "other", "each", "both", "all",
    "same", "different", "first", "second", "last", "next", "before", "after", "again", "back", "very", "more", "less",
    "only", "who", "which", "where", "when", "his", "her", "their", "they", "he", "she", "man", "woman", "person",
    "people", "child", "dog", "cat", "bird", "fish", "horse", "car", "boat", "house", "tree", "flower", "mountain",
    "river", "city", "street", "forest", "beach", "sun", "moon", "star", "cloud", "rain", "fire", "light", "wind",
    "day", "face", "hand", "eye", "head", "walks", "walking", "runs", "running", "looks", "looking", "stands", "sits",
    "dancing", "beautiful", "old", "young", "new", "long", "short", "high", "low", "open", "round", "empty", "full",
    "slow", "motion", "worst", "low", "best", "realistic", "cinematic", "dramatic", "ocean", "field", "road", "room",
    "window", "glass",
)  # fmt: skip
# The default negative prompt is Chinese, three bytes a character; as whole phrases it takes 57 tokens and not 350. The
# commas stay outside: ftfy, where it is installed, makes them narrow.
NEGATIVE_PHRASES = tuple(DEFAULT_NEGATIVE_PROMPT.split("，"))
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
SYMBOLS = "0123456789.,;:!?'\"()[]{}<>-_/\\+=*&%$#@~^|`"
_LISTS = (
    SIZES, COLOURS, SHAPES, NUMBERS, DIRECTIONS, MOTIONS, SPEEDS, BACKGROUNDS, CAMERA, STYLES, POSITIONS, COMMON,
)  # fmt: skip


def captions(count: int, seed: int = 0) -> Iterator[str]:
    """Sentences of the kind the miniature will be asked for."""
    draw = random.Random(seed).choice
    for _ in range(count):
        subject = f"{draw(SIZES)} {draw(COLOURS)} {draw(SHAPES)}"
        backdrop = f"{draw(COLOURS)} {draw(BACKGROUNDS)} background"
        action = f"{draw(MOTIONS)} {draw(DIRECTIONS)} {draw(SPEEDS)}"
        yield draw(
            (
                f"a {subject} {action} on a {backdrop}",
                f"{draw(NUMBERS)} {subject}s {action} {draw(POSITIONS)} the {draw(POSITIONS)}, {draw(STYLES)} style",
                f"The camera {draw(CAMERA)} {draw(DIRECTIONS)} while a {subject} {action}.",
                f"A {draw(STYLES)} {subject} and a {draw(COLOURS)} {draw(SHAPES)} {draw(POSITIONS)} a {backdrop}",
            )
        )


def corpus() -> Iterator[str]:
    """What the vocabulary is trained on: every word by itself, more often than in the captions, then captions."""
    words = sorted({word for words in _LISTS for word in words})
    yield from (word for word in words for _ in range(60))
    # A string becomes a candidate piece only if it stands in two different words, so each word gets a second one.
    yield from (f"{word}s" for word in words for _ in range(2))
    yield from (word.capitalize() for word in words for _ in range(4))
    yield from (character for character in LETTERS + SYMBOLS for _ in range(20))
    yield from captions(2000)


def train_vocabulary(size: int) -> bytes:
    """A sentencepiece model of exactly `size` pieces, as the bytes of its `spiece.model`."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_writer=model,
        model_type="unigram",
        vocab_size=size,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=True,
        split_digits=True,
        max_sentencepiece_length=24,
        required_chars=LETTERS + SYMBOLS,
        user_defined_symbols=list(NEGATIVE_PHRASES),
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
