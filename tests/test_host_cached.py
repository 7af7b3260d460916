"""Values computed once: no lock, as other threads and forked children must not wait for one."""

from __future__ import annotations

import doctest
import threading

from npu_matmul.host import cached
from npu_matmul.host.cached import cached_property


class Slow:
    """A value that two instances compute at the same time, or never."""

    together = threading.Barrier(2, timeout=10)

    @cached_property
    def value(self) -> int:
        """What a reader sees."""
        self.together.wait()
        return id(self)


class Both:
    """A value that two threads compute at the same time, or never."""

    together = threading.Barrier(2, timeout=10)

    @cached_property
    def value(self) -> object:
        self.together.wait()
        return object()


def test_two_instances_compute_at_the_same_time() -> None:
    slow = Slow(), Slow()
    other = threading.Thread(target=lambda: slow[0].value)
    other.start()
    assert slow[1].value == id(slow[1])
    other.join()
    assert slow[0].value == id(slow[0])  # kept: computing it again would wait for a second one


def test_two_threads_that_compute_it_get_the_same() -> None:
    """What one of them got may be in use already, such as the address of what was compiled."""
    slow, got = Both(), []
    other = threading.Thread(target=lambda: got.append(slow.value))
    other.start()
    got.append(slow.value)
    other.join()
    assert got[0] is got[1] is slow.value


def test_the_class_has_the_property_itself() -> None:
    assert isinstance(Slow.value, cached_property)
    assert Slow.value.__doc__ == "What a reader sees."


def test_the_docstring_examples_hold() -> None:
    result = doctest.testmod(cached)
    assert result.failed == 0 and result.attempted > 0
