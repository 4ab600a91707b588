"""Delivery to MLflow in a thread: now if the store answers, later if not; never blocks work."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

from raymi.tracking import store
from raymi.tracking.faults import problem_of

POLL_SECONDS = 0.5
"""Seconds between two looks for something new to deliver."""

FINISH_SECONDS = 120.0
"""Seconds for the last delivery of a finished run or sweep."""

FAIL_SECONDS = 15.0
"""Seconds for the last delivery of one that ended early, or to a store that fails."""

MARK_SECONDS = 2.0
"""Seconds that the end of an interrupted command waits until its runs are marked in MLflow."""

RETRY_SECONDS = (1.0, 30.0)
"""Seconds until the next attempt: after the first failure, and at most."""


class Delivery(threading.Thread, ABC):
    """Brings something to MLflow until it is closed, and tries again where the store fails.

    Args:
        uri: address of the store.
        what: is delivered, in a word.
        tell: shown a line when the store stops answering, and when it answers again.
    """

    def __init__(self, uri: str, what: str, tell: Callable[[str], None]) -> None:
        super().__init__(daemon=True, name=f"mlflow-{what}")
        self.uri, self.tell = uri, tell
        self.problem: str | None = None
        """Reason for which the store refuses data, with the remedy; None if it takes them."""
        self._what = what
        self._closing: str | None = None
        self._delivered = threading.Event()
        self._wake = threading.Event()
        self._give_up = threading.Event()
        # A SimpleQueue, as a handler of a signal puts into it.
        self._marks: SimpleQueue[threading.Event] = SimpleQueue()
        self._marker = threading.Thread(target=self._mark_all, daemon=True, name="mlflow-mark")

    @property
    def fails(self) -> bool:
        """Whether the store did not take the last thing that it was sent; False where nothing was
        sent yet."""
        return self.problem is not None

    def start(self) -> None:
        """Starts the delivery."""
        self._marker.start()
        super().start()

    def interrupt(self) -> threading.Event:
        """Marks running runs as KILLED in MLflow, beside the delivery.

        A process that gets SIGTERM may be killed seconds later. Returns immediately, also in the
        handler of a signal.

        Returns:
            An event that is set once the runs are marked, or the store refused it.
        """
        done = threading.Event()
        self._marks.put(done)
        return done

    def close(self, status: str, timeout: float, failing: float | None = None) -> bool:
        """Delivers unsent data, then sets the status in MLflow.

        Args:
            status: FINISHED, KILLED or FAILED.
            timeout: seconds for the delivery.
            failing: seconds after which a store that fails all the while is given up; None:
                `timeout`.

        Returns:
            True if everything was delivered; unsent data stays on disk.
        """
        self._closing = status
        self._wake.set()
        self._wait(timeout, timeout if failing is None else failing)
        self.abandon()
        return self._delivered.is_set()

    def _wait(self, timeout: float, failing: float) -> None:
        """Waits for the end of the delivery, at most `failing` seconds for a store that fails."""
        began = time.monotonic()
        answered = began
        while self.is_alive() and (now := time.monotonic()) < began + timeout:
            if not self.fails:
                answered = now
            elif now >= answered + failing:
                return
            self.join(min(POLL_SECONDS, timeout, failing))

    def abandon(self) -> None:
        """Stops after the call under way, as the end of the process would; unsent data stays on
        disk."""
        self._give_up.set()
        self._wake.set()

    def break_off(self) -> None:
        """Ends the delivery of an interrupted command: its runs are marked, the rest is left."""
        self.abandon()
        self.interrupt().wait(MARK_SECONDS)

    def undelivered(self, again: str) -> str:
        """Returns the message of a command whose delivery is not complete.

        Args:
            again: the command that completes it.
        """
        return (
            f"MLflow at {store.without_password(self.uri)} did not take everything: "
            f"{self.problem or 'too slow'}; nothing is lost, deliver it with: {again}"
        )

    def run(self) -> None:
        shortest, longest = RETRY_SECONDS
        wait = shortest
        while not self._give_up.is_set():
            closing = self._closing
            try:
                self._connect()
                self._deliver(closing)
            except Exception as error:  # whatever the server or the network does, work goes on
                self._say_problem(error)
                # A close wakes us at once; from then on only its time limit counts.
                (self._give_up if closing else self._wake).wait(wait)
                self._wake.clear()
                wait = shortest if closing else min(2 * wait, longest)
                continue
            if self.problem is not None:
                self.tell("MLflow answers again")
            self.problem, wait = None, shortest
            if closing:
                self._delivered.set()
                return
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()

    def _mark_all(self) -> None:
        while True:
            done = self._marks.get()
            ending = self._closing if self._closing not in (None, "FINISHED") else None
            with suppress(Exception):  # the delivery says what the store refuses
                self._mark(ending or "KILLED")
            done.set()

    @abstractmethod
    def _connect(self) -> None:
        """Finds or makes in MLflow what is delivered to; called again and again."""

    @abstractmethod
    def _deliver(self, closing: str | None) -> None:
        """Brings MLflow up to date, and sets the status there where it is closing."""

    @abstractmethod
    def _mark(self, status: str) -> None:
        """Sets the status of running runs; called in a separate thread."""

    def _say_problem(self, error: Exception) -> None:
        told = self.problem is not None
        self.problem = problem_of(error, self.uri)
        if not told:
            self.tell(
                f"MLflow at {store.without_password(self.uri)} does not take what it is sent: "
                f"{self.problem}; the {self._what} goes on, and all of it is kept and sent again"
            )
