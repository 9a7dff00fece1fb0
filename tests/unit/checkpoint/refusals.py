"""What refusals of checkpoints have in common."""

from collections.abc import Callable

import pytest

from wan_core.errors import CheckpointError


def sentence_of(act: Callable[[], object]) -> str:
    """The one sentence with which something is refused; to be longer it would have to repeat what is in the file."""
    with pytest.raises(CheckpointError) as caught:
        act()
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 600
    return sentence
