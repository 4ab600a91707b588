"""Delivery to MLflow in a thread, with retries; never blocks training."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

from raymi.signals import BackgroundThread
from raymi.tracking import store
from raymi.tracking.faults import error_with_remedy

POLL_SECONDS = 0.5
"""Seconds between two searches for new data."""

FINISH_SECONDS = 120.0
"""Seconds for the last delivery of a finished run or sweep."""

FAIL_SECONDS = 15.0
"""Seconds for the last delivery of an interrupted run or sweep, or to a failing store."""

MARK_SECONDS = 2.0
"""Seconds for marking the runs of an interrupted command in MLflow."""

RETRY_SECONDS = (1.0, 30.0)
"""Seconds until the next attempt: after the first failure, and longest."""


class Delivery(BackgroundThread, ABC):
    """Thread that delivers data to MLflow until it is closed, and retries if the store fails.

    Args:
        uri: address of the store.
        subject: of the delivery in messages, such as "run".
        log: callback for a line when the store stops and resumes answering.
    """

    def __init__(self, uri: str, subject: str, log: Callable[[str], None]) -> None:
        super().__init__(f"mlflow-{subject}")
        self.uri, self.log = uri, log
        self.problem: str | None = None
        """Error of the last attempt, with its remedy; None: it succeeded."""
        self._subject = subject
        self._closing: str | None = None
        self._delivered = threading.Event()
        self._wake = threading.Event()
        self._give_up = threading.Event()
        # A SimpleQueue: a signal handler puts into it.
        self._marks: SimpleQueue[threading.Event] = SimpleQueue()
        self._marker = threading.Thread(target=self._mark_all, daemon=True, name="mlflow-mark")

    @property
    def fails(self) -> bool:
        """True if the last attempt failed."""
        return self.problem is not None

    def start(self) -> None:
        """Starts the delivery."""
        self._marker.start()
        super().start()

    def interrupt(self) -> threading.Event:
        """Marks running runs as KILLED in MLflow, in parallel with the delivery.

        A process may be killed seconds after SIGTERM. Returns immediately, also in a signal
        handler.

        Returns:
            Event that is set once the runs are marked, or the store refused it.
        """
        done = threading.Event()
        self._marks.put(done)
        return done

    def close(self, status: str, timeout: float, failing: float | None = None) -> bool:
        """Delivers unsent data, then sets the status in MLflow.

        Args:
            status: FINISHED, KILLED or FAILED.
            timeout: seconds for the delivery.
            failing: seconds for a store that fails all the time; None: `timeout`.

        Returns:
            True if everything was delivered; unsent data stay on disk.
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
        """Stops after the current request; unsent data stay on disk."""
        self._give_up.set()
        self._wake.set()

    def break_off(self) -> None:
        """Ends the delivery of an interrupted command: only marks its runs."""
        self.abandon()
        self.interrupt().wait(MARK_SECONDS)

    def undelivered(self, command: str) -> str:
        """Returns the message of an incomplete delivery.

        Args:
            command: that completes it.
        """
        return (
            f"MLflow at {store.without_password(self.uri)} did not accept all data: "
            f"{self.problem or 'too slow'}; nothing is lost, deliver it with: {command}"
        )

    def work(self) -> None:
        """Delivers until the delivery is closed or abandoned."""
        shortest, longest = RETRY_SECONDS
        wait = shortest
        while not self._give_up.is_set():
            closing = self._closing
            try:
                self._deliver(closing)
            except Exception as error:  # of the server or the network; training continues
                self._log_problem(error)
                # `close` interrupts the wait; from then on only its time limit counts.
                (self._give_up if closing else self._wake).wait(wait)
                self._wake.clear()
                wait = shortest if closing else min(2 * wait, longest)
                continue
            if self.problem is not None:
                self.log("MLflow answers again")
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
            with suppress(Exception):  # the delivery logs errors of the store
                self._mark(ending or "KILLED")
            done.set()

    @abstractmethod
    def _deliver(self, closing: str | None) -> None:
        """Finds or creates the run in MLflow, and delivers new data and the status `closing`."""

    @abstractmethod
    def _mark(self, status: str) -> None:
        """Sets the status of running runs, in a separate thread."""

    def _log_problem(self, error: Exception) -> None:
        is_new = self.problem is None
        self.problem = error_with_remedy(error, self.uri)
        if is_new:
            self.log(
                f"MLflow at {store.without_password(self.uri)} rejects data: {self.problem}; the "
                f"{self._subject} continues, and unsent data are queued"
            )
