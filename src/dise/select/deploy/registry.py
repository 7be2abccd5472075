"""The JSON form of policies: a constructor's name and its arguments, for each registered kind of value."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from types import FunctionType
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Form:
    """The JSON form of one kind of value: {"kind": its name, and each argument of its constructor}.

    Attributes:
        kind: the class, or a function that stands for itself, such as a norm.
        arguments: value → the constructor's keyword arguments, which are written by their own forms. An argument named
            `head` is a module of the model, or several in a row, and is written by name.
        make: the constructor.
    """

    kind: Callable[..., Any]
    arguments: Callable[[Any], dict[str, Any]]
    make: Callable[..., Any]

    @property
    def name(self) -> str:
        """What the kind is called in files."""
        return self.kind.__name__


def arguments_form(cls: type[Any], arguments: Callable[[Any], dict[str, Any]]) -> Form:
    """The form of a class whose arguments are read from a value by a function."""
    return Form(cls, arguments, cls)


def fields_form(cls: type[Any]) -> Form:
    """The form of a dataclass: its fields."""
    return Form(cls, lambda value: {field.name: getattr(value, field.name) for field in fields(value)}, cls)


def function_form(function: Callable[..., Any]) -> Form:
    """The form of a function, which is known by its name."""
    return Form(function, lambda value: {}, lambda: function)


class Registry:
    """The forms of all kinds of values that policies consist of.

    Args:
        forms: one for each kind.

    Raises:
        ValueError: two kinds of one name.
    """

    def __init__(self, forms: Iterable[Form] = ()) -> None:
        self._by_kind: dict[object, Form] = {}
        self._by_name: dict[str, Form] = {}
        for form in forms:
            self.register(form)

    def register(self, form: Form) -> None:
        """Add a kind.

        Raises:
            ValueError: another kind has the same name.
        """
        if form.name in self._by_name:
            raise ValueError(f"form: a kind named {form.name!r} is registered already")
        self._by_kind[form.kind] = self._by_name[form.name] = form

    def of_value(self, value: object) -> Form | None:
        """The form of a value; None if its kind is not registered. A subclass is another kind."""
        return self._by_kind.get(value if isinstance(value, FunctionType) else type(value))

    def of_name(self, name: object) -> Form | None:
        """The form of a kind that is named in a file; None if it is not registered."""
        return self._by_name.get(name) if isinstance(name, str) else None


class PolicyJson:
    """Writes policies as JSON and reads them back, for one model, whose modules policies refer to by name.

    Args:
        registry: the forms.
        model: contains the heads of the policies.
    """

    def __init__(self, registry: Registry, model: nn.Module) -> None:
        self.registry, self.model = registry, model
        self._names: dict[int, str] = {id(module): name for name, module in model.named_modules()}

    def write(self, value: object, where: str) -> Any:
        """A value as JSON; `where` names it in errors.

        Raises:
            ValueError: a value, or a part of it, has no JSON form.
        """
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            return [self.write(part, f"{where}[{i}]") for i, part in enumerate(value)]
        form = self.registry.of_value(value)
        if form is None:
            raise ValueError(
                f"{where}: {value!r} cannot be saved: only dise's integrators, rules, selectors and norms have a JSON "
                "form"
            )
        written: dict[str, Any] = {"kind": form.name}
        for name, part in form.arguments(value).items():
            place = f"{where}.{name}"
            written[name] = self._head_names(part, place) if name == "head" else self.write(part, place)
        return written

    def read(self, value: Any) -> Any:
        """What `write` wrote; lists become tuples.

        Raises:
            ValueError: a kind that is not registered, arguments that it does not take, or a head that the model lacks.
        """
        if isinstance(value, list):
            return tuple(self.read(part) for part in value)
        if not isinstance(value, dict):
            return value
        form = self.registry.of_name(value.get("kind"))
        if form is None:
            raise ValueError(f"folder: the policy has a part of kind {value.get('kind')!r}, which is not known here")
        arguments = {
            name: self._head(part) if name == "head" else self.read(part)
            for name, part in value.items()
            if name != "kind"
        }
        return form.make(**arguments)

    def _head_names(self, head: nn.Module, where: str) -> list[str] | str:
        """Names of the model's modules that a head consists of, in the order of their calls."""
        if id(head) in self._names:
            return self._names[id(head)]
        if isinstance(head, nn.Sequential) and all(id(part) in self._names for part in head):
            return [self._names[id(part)] for part in head]
        raise ValueError(f"{where}: {head!r} cannot be saved: the head is not made of modules of the model")

    def _head(self, names: str | Sequence[str]) -> nn.Module:
        try:
            if isinstance(names, str):
                return self.model.get_submodule(names)
            return nn.Sequential(*(self.model.get_submodule(name) for name in names))
        except AttributeError as error:
            raise ValueError(f"model: expected modules {names}, which the policy's head is made of") from error
