"""All attention backends in order of preference; the last one rejects nothing."""

from . import sdpa

BACKENDS = sdpa.BACKENDS
BACKEND_NAMES = tuple(backend.name for backend in BACKENDS)
