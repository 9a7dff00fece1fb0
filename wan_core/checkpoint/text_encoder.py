"""The UMT5 text encoder: its dimensions out of its tensors, its vocabulary, and what is refused in its place.

UMT5 (arXiv:2304.09151) is T5 with a table of relative positions in every layer instead of in the first alone; that is
how the two are told apart. The vocabulary is a sentencepiece model: ComfyUI's files carry it as the tensor
`spiece_model`, GGUF files take it apart into fields, and the official release has it in a folder beside the encoder.
"""

from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..specs import UMT5_XXL, TextEncoderSpec
from . import gguf_vocabulary
from .complete import expect_exactly, expect_names, num_layers, shape_of
from .inventory import text_encoder_shapes
from .look import expect_decodable, expect_kind
from .read import Checkpoint, open_checkpoint

EMBEDDED_VOCABULARY = "spiece_model"
# Where a vocabulary is, seen from the folder of an encoder or of a whole model: official, diffusers, bare.
TOKENIZER_PLACES = ("google/umt5-xxl/spiece.model", "tokenizer/spiece.model", "spiece.model")

_WANTED = "a UMT5-XXL encoder such as umt5_xxl_fp16.safetensors"
_T5_VOCABULARY = 32128
_MAX_VOCABULARY_BYTES = 64 * 2**20
# `encoder.embed_tokens.weight` is the token embedding once more, tied.
_EXTRAS = (EMBEDDED_VOCABULARY, "encoder.embed_tokens.weight")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextEncoderSource:
    """A text encoder that can be built: its tensors, its dimensions and its vocabulary.

    tokenizer: path of a sentencepiece model, `None` where the encoder's own file carries it.
    """

    checkpoint: Checkpoint
    spec: TextEncoderSpec
    tokenizer: Path | None

    def vocabulary(self) -> bytes:
        """The content of the sentencepiece model."""
        if self.tokenizer is None:
            if self.checkpoint.format == "GGUF":
                return gguf_vocabulary.rebuild_vocabulary(_file(self.checkpoint))
            return bytes(self.checkpoint.load(EMBEDDED_VOCABULARY).numpy())
        try:
            return self.tokenizer.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{str(self.tokenizer)!r} cannot be read: {error.strerror or error}") from error


def open_text_encoder(path: Path | str, tokenizer: Path | str | None = None) -> TextEncoderSource:
    """Open a UMT5 encoder, headers only, and find its vocabulary: given, inside its file, or beside it.

    tokenizer: a sentencepiece model or a folder that holds one. Raises `CheckpointError` for anything else.
    """
    checkpoint = open_checkpoint(path)
    spec = text_encoder_spec(checkpoint)
    if tokenizer is not None:
        vocabulary = find_tokenizer(Path(tokenizer))
        if vocabulary is None:
            raise CheckpointError(
                f"no tokenizer at {str(tokenizer)!r}, expected a sentencepiece model or a folder with one "
                f"({', '.join(TOKENIZER_PLACES)})"
            )
    elif has_vocabulary(checkpoint):
        vocabulary = None
    else:
        vocabulary = next(filter(None, map(find_tokenizer, _folders_near(Path(path)))), None)
        if vocabulary is None:
            raise CheckpointError(
                f"{checkpoint.label} carries no tokenizer and none is beside it ({', '.join(TOKENIZER_PLACES)}): give "
                "its path, or use ComfyUI's umt5_xxl_fp16.safetensors, which carries one"
            )
    return TextEncoderSource(checkpoint=checkpoint, spec=spec, tokenizer=vocabulary)


def text_encoder_spec(checkpoint: Checkpoint) -> TextEncoderSpec:
    """Dimensions of a UMT5 encoder; raises `CheckpointError` in one sentence for anything else."""
    expect_kind(checkpoint, "text_encoder", _WANTED)
    layers = num_layers(checkpoint, "blocks")
    vocab_size, dim = shape_of(checkpoint, "token_embedding.weight", 2)
    _expect_umt5(checkpoint, layers, vocab_size)
    expect_decodable(checkpoint)
    names = text_encoder_shapes(TextEncoderSpec(num_layers=max(layers, 1))).keys()
    expect_names(checkpoint, names, "a UMT5 encoder")
    num_buckets, num_heads = shape_of(checkpoint, "blocks.0.pos_embedding.embedding.weight", 2)
    attention_dim = shape_of(checkpoint, "blocks.0.attn.q.weight", 2)[0]
    if attention_dim % num_heads:
        raise CheckpointError(
            f"{checkpoint.label} has {num_heads} heads, which do not divide its width {attention_dim}"
        )
    spec = TextEncoderSpec(
        vocab_size=vocab_size,
        dim=dim,
        attention_dim=attention_dim,
        ffn_dim=shape_of(checkpoint, "blocks.0.ffn.fc1.weight", 2)[0],
        num_heads=num_heads,
        num_layers=layers,
        num_buckets=num_buckets,
    )
    expect_exactly(checkpoint, "text_encoder", text_encoder_shapes(spec), "a UMT5 encoder", _EXTRAS)
    return spec


def has_vocabulary(checkpoint: Checkpoint) -> bool:
    """Whether the file carries a sentencepiece model; raises `CheckpointError` where that tensor is something else."""
    info = checkpoint.tensors.get(EMBEDDED_VOCABULARY)
    if info is None:
        return checkpoint.format == "GGUF" and gguf_vocabulary.has_vocabulary(_file(checkpoint))
    if info.dtype != "uint8" or len(info.shape) != 1 or not 0 < info.nbytes <= _MAX_VOCABULARY_BYTES:
        raise CheckpointError(
            f"tensor 'spiece_model' of {checkpoint.label} is {info.dtype} of shape {info.shape}, expected the bytes "
            "of a sentencepiece model"
        )
    return True


def _folders_near(path: Path) -> tuple[Path, ...]:
    """Where a vocabulary may be: beside the encoder, in its folder or, in the layout of diffusers, beside that."""
    own = (path,) if path.is_dir() else ()
    return (path.parent, *own, *((path.parent.parent,) if path.parent.name == "text_encoder" else ()))


def find_tokenizer(path: Path) -> Path | None:
    """The sentencepiece model at `path` or, in a folder, in one of the usual places."""
    candidates = [path / place for place in TOKENIZER_PLACES] if path.is_dir() else [path]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _file(checkpoint: Checkpoint) -> Path:
    """The only file of a GGUF checkpoint, whose path may be its folder's."""
    return next(iter(checkpoint.stamps))


def _expect_umt5(checkpoint: Checkpoint, layers: int, vocab_size: int) -> None:
    tables = [i for i in range(layers) if f"blocks.{i}.pos_embedding.embedding.weight" in checkpoint.tensors]
    if (layers > 1 and tables == [0]) or vocab_size == _T5_VOCABULARY:
        raise CheckpointError(
            f"{checkpoint.label} is a T5 encoder ({vocab_size} words, relative positions in "
            f"{len(tables)} of {layers} layers), the kind that Flux and SD3 use, expected {_WANTED} "
            f"({UMT5_XXL.vocab_size} words, relative positions in every layer)"
        )
