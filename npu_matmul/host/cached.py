"""A value that is computed when it is first asked for, without a lock.

``functools.cached_property`` of Python 3.10 and 3.11 holds one lock per property while it computes:
all threads of a process would wait for one another's conversions, and a forked child for ever for
a thread that it does not have. Here two threads may compute a value twice; both get the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class cached_property(Generic[T]):  # noqa: N801 - used as a decorator, like the one of functools
    """As ``functools.cached_property``; the value stands in the instance's ``__dict__``.

    >>> class Circle:
    ...     def __init__(self, radius):
    ...         self.radius = radius
    ...     @cached_property
    ...     def area(self):
    ...         print("computed")
    ...         return 3.14 * self.radius**2
    >>> circle = Circle(10)
    >>> circle.area, circle.area
    computed
    (314.0, 314.0)
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> cached_property[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> cached_property[T] | T:
        if instance is None:
            return self
        value: T = instance.__dict__.setdefault(self.name, self.compute(instance))
        return value
