"""What training says while it runs: a bar on a terminal, lines anywhere else."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

# Seconds between two lines; longer than it takes to read one.
_EVERY = 10.0
_SHOWN = ("actor_loss", "critic_loss", "q_mean")


class Progress:
    """Shows how far a run is: where it is watched as a bar, in a log as a line every ten seconds.

    The bar is tqdm's; where that is not installed, a terminal gets lines too.

    A line has the updates done, their speed, the time left, and what was last measured:
    ``gtp seed 0: 12,000 of 50,000 updates, 38 per second, 17 min left, actor_loss 1.3``.

    Args:
        name: What each line starts with.
        total: Updates of the run.
        line: Line of the terminal for the bar.
        stream: Where lines go; default ``sys.stderr``.
        clock: Seconds, monotonic.

    Example:
        >>> import sys
        >>> from gtp_policy.progress import Progress
        >>> progress = Progress("gtp seed 0", 100, stream=sys.stdout)
        >>> progress.say("evaluates 10 episodes")
        gtp seed 0: evaluates 10 episodes
        >>> progress.close()
    """

    def __init__(
        self,
        name: str,
        total: int,
        *,
        line: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._total, self._done = name, total, 0
        self._stream, self._clock = stream or sys.stderr, clock
        self._bar: Any = None
        if self._stream.isatty():
            with contextlib.suppress(ImportError):  # no more than a nicety
                from tqdm import tqdm

                self._bar = tqdm(total=total, desc=name, position=line, file=self._stream)
        self._first, self._began = 0, clock()
        self._last = self._began
        self._measured: dict[str, float] = {}

    def say(self, what: str) -> None:
        """Says what happens now, at once.

        Args:
            what: A few words.
        """
        if self._bar is not None:
            self._bar.set_postfix_str(what)
        else:
            # At once: runs side by side would come between the words and the end of the line.
            self._stream.write(f"{self._name}: {what}\n")
            self._stream.flush()

    def start(self, done: int) -> None:
        """Begins to count time.

        Args:
            done: Updates that the run goes on from.
        """
        self._done = self._first = done
        self._began = self._last = self._clock()
        if self._bar is not None:
            self._bar.reset(self._total)
            self._bar.update(done)
        self.say(f"goes on from update {done:,}" if done else f"{self._total:,} updates to do")

    def evaluates(self, episodes: int) -> None:
        """Says that an evaluation goes on, if nothing was said for ten seconds.

        Args:
            episodes: How many are still to be done.
        """
        if (now := self._clock()) - self._last >= _EVERY:
            self._last = now
            self.say(f"evaluates, {episodes} episodes left")

    def measured(self, figures: Mapping[str, float]) -> None:
        """Keeps what was measured for the next line.

        Args:
            figures: Numbers by name; of the training metrics the losses and the value are shown.
        """
        self._measured |= {n: figures[n] for n in (*_SHOWN, "mean_return") if n in figures}
        if self._bar is not None:
            self._bar.set_postfix(self._measured, refresh=False)

    def advance(self, updates: int) -> None:
        """Counts updates, and writes a line if the last one is ten seconds old.

        Args:
            updates: How many more are done.
        """
        self._done += updates
        if self._bar is not None:
            self._bar.update(updates)
        elif (now := self._clock()) - self._last >= _EVERY or self._done == self._total:
            self._last = now
            self.say(self._words(now))

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _words(self, now: float) -> str:
        speed = (self._done - self._first) / max(now - self._began, 1e-9)
        words = [f"{self._done:,} of {self._total:,} updates", f"{speed:.3g} per second"]
        if left := self._total - self._done:
            words.append(f"{_duration(left / speed)} left")
        words += [f"{name} {value:.4g}" for name, value in self._measured.items()]
        return ", ".join(words)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
