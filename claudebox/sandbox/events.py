"""The launcher's event loop: callbacks for descriptors and deadlines, one thread, no wake-ups when idle."""

import select
import time
from bisect import insort

READ = select.EPOLLIN
WRITE = select.EPOLLOUT

now = time.monotonic


class Deadline:
    """A callback that is due at `when` (seconds of events.now) until it is cancelled."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback):
        self.when = when
        self.callback = callback

    def __lt__(self, other):
        return self.when < other.when


class Loop:
    """Calls back when descriptors are ready or deadlines have passed, in the thread that runs it.

    An exception of a callback ends run() and reaches its caller.
    """

    def __init__(self):
        self._epoll = select.epoll()
        self._watched = {}
        self._deadlines = []
        self._stopped = False

    def add(self, descriptor: int, callback, events: int = READ) -> None:
        """Call `callback(events)` whenever the descriptor is ready (level-triggered).

        Replaces what was added for it before. `events` is READ, WRITE, both, or 0 for errors only.
        """
        # Every registration is a new object, which tells apart two owners of one descriptor number.
        known = descriptor in self._watched
        self._watched[descriptor] = [callback]
        if known:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Forget a descriptor; before it is closed. One that was not added is no error."""
        if self._watched.pop(descriptor, None):
            self._epoll.unregister(descriptor)

    def busy(self) -> bool:
        """Say whether there is anything to wait for."""
        return bool(self._watched or self._deadlines)

    def call_at(self, when: float, callback) -> Deadline:
        """Call `callback()` once, at `when` (seconds of events.now)."""
        deadline = Deadline(when, callback)
        insort(self._deadlines, deadline)
        return deadline

    def call_in(self, seconds: float, callback) -> Deadline:
        """Call `callback()` once, `seconds` from now."""
        return self.call_at(now() + seconds, callback)

    def cancel(self, deadline) -> None:
        """Forget a deadline; one that has passed, or None, is no error."""
        if deadline in self._deadlines:
            self._deadlines.remove(deadline)

    def stop(self) -> None:
        """Have run() return after the callback that is running."""
        self._stopped = True

    def run(self) -> None:
        """Work until stop(). Without deadlines it sleeps until a descriptor is ready."""
        self._stopped = False
        while not self._stopped:
            wait = max(0, self._deadlines[0].when - now()) if self._deadlines else -1
            ready = self._epoll.poll(wait)
            ready = [
                (descriptor, self._watched.get(descriptor), mask) for descriptor, mask in ready
            ]
            for descriptor, registration, mask in ready:
                # A callback before this one may have removed it, or closed it and reused the number.
                if registration and self._watched.get(descriptor) is registration:
                    registration[0](mask)
                if self._stopped:
                    return
            while self._deadlines and self._deadlines[0].when <= now() and not self._stopped:
                self._deadlines.pop(0).callback()

    def close(self) -> None:
        """Release the loop. Descriptors that were added stay open: they are their owners'."""
        self._watched.clear()
        self._deadlines.clear()
        self._epoll.close()
