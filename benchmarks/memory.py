"""How much memory tensors take, counted as torch makes and frees them: the same number on every run and machine."""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Memory(TorchDispatchMode):
    """The bytes of the tensors made within the context: `held` now, and `peak`, the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._bound, self.peak = 0, 0  # some of what is counted in the bound may be gone by now

    @property
    def held(self) -> int:
        """Bytes that are alive."""
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self._bound = sum(size for _, size in self._alive.values())
        return self._bound

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._add(x.untyped_storage())
        if self._bound > self.peak:
            self.peak = max(self.peak, self.held)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive or self._alive[key][0].expired():
            self._alive[key] = StorageWeakRef(storage), storage.nbytes()
            self._bound += storage.nbytes()
