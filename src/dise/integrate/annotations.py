"""Shape annotations of tensors, e.g. `Float[Tensor, "n F"]`: n samples, F features.

They are jaxtyping's where it is imported already, as in this project's tests, which check them by beartype. Elsewhere
`Float[Tensor, "n F"]` is `Tensor`, so that the library needs torch alone.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Inexact, Int, Num, Shaped
else:

    class _Unchecked:
        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Bool = Float = Inexact = Int = Num = Shaped = _Unchecked

__all__ = ["Bool", "Float", "Inexact", "Int", "Num", "Shaped"]
