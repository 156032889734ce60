"""Fields of a result that are computed when they are first read."""

from typing import Any


class WhenRead:
    """A field of a dataclass that may be given as a function: it is called once, when the field is first read.

    This is for values that take as long to compute as the result itself, such as readable labels of 2,000 tokens.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Square:
    ...     area: int = WhenRead()
    >>> Square(area=lambda: 3 * 3).area
    9
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None) -> Any:
        if instance is None:
            raise AttributeError(self.name)  # says to dataclass that the field has no default
        value = vars(instance)[self.name]
        if callable(value):
            value = vars(instance)[self.name] = value()
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self.name] = value
