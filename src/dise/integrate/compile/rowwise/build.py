"""Compiling a kernel, and finding it again on disk."""

import ctypes
import os
import subprocess
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dise.integrate.compile import private
from dise.integrate.compile.rowwise.values import UnsupportedError

VECTOR_BYTES = {"AVX2": 32, "AVX512": 64}  # by torch's names for the CPU's instructions

FLAGS = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"),
}
# -O3 takes longer and generates code that is no faster
OPTIONS = ("-std=c++17", "-O2", "-ftree-vectorize", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-w")


@cache
def built(source: str) -> Any:
    """The function `kernel` of a source.

    Raises:
        UnsupportedError: the compiler fails, or there is none.
    """
    libraries = Path(torch.__file__).parent / "lib"  # Sleef's functions are in torch's own
    command = [os.environ.get("CXX", "g++"), *OPTIONS, *FLAGS[torch.backends.cpu.get_cpu_capability()]]
    link = ["-shared", f"-L{libraries}", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"]
    key = sha256("\0".join([*command, *link, torch.__version__, source]).encode()).hexdigest()
    library = Path(private.cache_folder()) / "dise" / f"{key}.so"
    try:
        if not _whole(library):
            library.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=library.parent) as folder:
                code, made = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
                code.write_text(source, encoding="utf-8")
                subprocess.run(
                    [*command, str(code), "-o", str(made), *link], check=True, capture_output=True, text=True
                )
                content = made.read_bytes()
                made.write_bytes(content + sha256(content).digest())  # loaders ignore what follows
                made.replace(library)  # at once: other processes may build the same
        function = ctypes.CDLL(str(library)).kernel
    except (OSError, subprocess.CalledProcessError, AttributeError) as error:
        raise UnsupportedError(f"{error}: {getattr(error, 'stderr', '')}") from error
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_void_p]
    function.restype = None
    return function


def _whole(library: Path) -> bool:
    """Whether a library is there and not damaged, by the hash at its end: calling a part of one ends the process."""
    if not library.exists():
        return False
    content, size = library.read_bytes(), sha256().digest_size
    return content[-size:] == sha256(content[:-size]).digest()
