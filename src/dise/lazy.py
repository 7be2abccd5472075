"""Names of a package that are imported when they are first used, so that importing the package is quick."""

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, Iterable[str]], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package: its name.
        names: for each of its modules, the names that the package takes from there.
        modules: modules that are attributes of the package themselves.
    """
    homes = {name: module for module, some in names.items() for name in some}
    own = frozenset(modules)

    def lookup(name: str) -> Any:
        """A name of the package, imported now."""
        if name in own:
            return import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    def directory() -> list[str]:
        """All names of the package."""
        return sorted({*vars(sys.modules[package]), *homes, *own})

    return lookup, directory
