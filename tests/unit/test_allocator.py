"""What is asked of PyTorch's allocator, before torch is there."""

import os
import subprocess
import sys

from wan_core.allocator import let_segments_grow


def test_segments_grow_unless_the_user_says_otherwise(monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "garbage_collection_threshold:0.8")
    let_segments_grow()
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ


def test_it_is_asked_before_torch_is_imported():
    code = (
        "import os, sys; from wan_core.__main__ import main; from contextlib import suppress\n"
        "with suppress(SystemExit): main(['--help'])\n"
        "print(os.environ['PYTORCH_CUDA_ALLOC_CONF'], 'torch' in sys.modules)"
    )
    environment = {"PATH": "/usr/bin", "PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip().splitlines()[-1] == "expandable_segments:True False"
