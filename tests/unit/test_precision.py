"""TF32 is a run's own business: what the host had chosen is there again afterwards, however the run ends."""

import pytest
import torch

from wan_core.precision import tf32


def current() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(params=[(False, False), (True, False), (False, True), (True, True)])
def before(request):
    kept = current()
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


@pytest.mark.parametrize("enabled", [True, False])
def test_set_for_the_block_and_put_back(before, enabled):
    with tf32(enabled=enabled):
        assert current() == (enabled, enabled)
    assert current() == before


def test_put_back_after_an_error(before):
    with pytest.raises(KeyboardInterrupt), tf32(enabled=not before[0]):
        raise KeyboardInterrupt
    assert current() == before
