"""Counts the bytes of live tensors, also of such on the meta device, where a run at full size costs nothing.

So a prediction of memory asks the code that will run instead of repeating it. What a library allocates inside of one
operator is not seen, nor what a compiler would fuse.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_iter

from .meta import OutsideCompiler, answer


class LiveBytes(OutsideCompiler):
    """Context manager; `peak` is the largest sum of storages that operations inside it made and that were alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        out = answer(func, args, kwargs or {})
        given = {StorageWeakRef(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        self._live = {storage: size for storage, size in self._live.items() if not storage.expired()}
        for tensor in _tensors(out):
            storage = StorageWeakRef(tensor.untyped_storage())
            if storage not in given:
                self._live[storage] = tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self._live.values()))
        return out


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor)]
