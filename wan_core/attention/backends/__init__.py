"""All attention backends in order of preference; the last one rejects nothing.

The order is that of their measured rates on one H200 at 75,600 tokens in bfloat16 (2026-11-21, TFLOP/s):
FlashAttention 4 703 in wide blocks and 662-670 in its own, FlashAttention 3 about 650 (published, H100), cuDNN 546-573,
torch's flash 363, efficient 183. FlashAttention 2 and xFormers stand beside the torch kernels they are kin to. It is
what counts until the kernels were timed on the machine at hand (`calibrate.py`), where another order may be found.
"""

from . import flash_attention_2, flash_attention_3, flash_attention_4, sdpa, xformers

BACKENDS = (
    flash_attention_4.WIDE,
    flash_attention_4.BACKEND,
    flash_attention_3.BACKEND,
    sdpa.CUDNN,
    flash_attention_2.BACKEND,
    sdpa.FLASH,
    xformers.BACKEND,
    sdpa.EFFICIENT,
    sdpa.MATH,
    sdpa.ANY,
)
BACKEND_NAMES = tuple(backend.name for backend in BACKENDS)
