"""Measurements, each run as `python -m benchmarks.NAME`; what they gave is in `results/` and in `docs/LOG.md`."""

from wan_core.allocator import let_segments_grow

# As on the command line, before any of them imports torch.
let_segments_grow()
