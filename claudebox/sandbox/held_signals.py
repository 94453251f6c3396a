"""Holds back the signals that end a launch while something is made that has to be removed again."""

import _signal

_ENDING = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP)


class HeldSignals:
    """None of them interrupts between hold() and release(), or in a `with` block; it does afterwards.

    Python raises what a signal handler raises after any call, also after one that has just made a
    process or opened a file: its result is lost then. A forked child has to call release(), too.
    """

    def __init__(self):
        self._before = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())

    def hold(self) -> None:
        """Hold them back from now on."""
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _ENDING)

    def release(self) -> None:
        """Let them interrupt again, and those at once that came meanwhile."""
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._before)

    def __enter__(self):
        self.hold()
        return self

    def __exit__(self, *_):
        self.release()
