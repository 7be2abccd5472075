"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a path to write to, beside `file`; on success move it to `file`, on an exception remove it.

    Readers see the old file or the new one, never a part; two processes that write the same file don't mix.

        with atomic_write(folder / "weights.safetensors") as partial:
            save_file(tensors, partial)
    """
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
