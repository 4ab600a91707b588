"""Call in a background thread, so that the main thread handles signals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from raymi.signals import BackgroundThread

T = TypeVar("T")


class BackgroundCall(BackgroundThread, Generic[T]):
    """Daemon thread that calls a function.

    A thread of `concurrent.futures` is no daemon: a Ray that hangs would keep the command alive.

    Args:
        name: Name of the thread.
        function: The function.

    Attributes:
        result: Its result; None before its end and after an error.
        error: Its error, if any.
    """

    def __init__(self, name: str, function: Callable[[], T]) -> None:
        super().__init__(name)
        self._function = function
        self.result: T | None = None
        self.error: BaseException | None = None

    def work(self) -> None:
        """Calls the function."""
        try:
            self.result = self._function()
        except BaseException as error:
            self.error = error
