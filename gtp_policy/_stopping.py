"""Ctrl-C and SIGTERM as a flag that a loop looks at."""

import signal
import threading
import types
from typing import Any, Self


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a flag, so that a loop can save and leave.

    The first signal raises the flag, a second one interrupts as usual. A signal that is ignored
    stays ignored. The handlers that were there before come back at the end. Of several that are
    nested, a signal raises the flags of all. Outside the main thread nothing is installed.

    Example:
        >>> import signal
        >>> from gtp_policy import StopSignal
        >>> with StopSignal() as stop:
        ...     for update in range(1000):
        ...         if stop:
        ...             break
        ...         if update == 3:
        ...             signal.raise_signal(signal.SIGTERM)
        >>> update
        4
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._previous: dict[int, Any] = {}
        self._shared = False

    def __enter__(self) -> Self:
        """Installs the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # What is ignored stays so: a shell keeps its Ctrl-C from what runs behind it.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        """Brings the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def __bool__(self) -> bool:
        """Returns whether a signal has come."""
        return self._number is not None

    def pass_on(self) -> None:
        """Sends the signal again, once the handlers are those from before: Ctrl-C then interrupts.

        Does nothing where none came, or where a `StopSignal` around this one has heard of it.
        """
        if self._number is not None and not self._shared:
            signal.raise_signal(self._number)

    def _stop(self, number: int, frame: types.FrameType | None) -> None:
        if self:
            self.__exit__()
            signal.raise_signal(number)
        self._number = number
        # An outer StopSignal would not hear of it: here the signal ends.
        outer = getattr(self._previous.get(number), "__self__", None)
        self._shared = isinstance(outer, StopSignal)
        if isinstance(outer, StopSignal) and not outer:
            outer._stop(number, frame)
