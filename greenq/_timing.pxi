# What is counted and ordered by time: token bucket and timer heap. The time is always handed in.


@cython.final
cdef class TokenBucket:
    """A rate: `rate` tokens a second, at most `capacity` saved up. `now` is any monotonic clock in seconds."""

    cdef public double rate
    cdef public double capacity
    cdef double _tokens
    cdef double _stamp

    def __init__(self, double rate, double capacity=1.0):
        if not (isfinite(rate) and rate >= 0.0 and isfinite(capacity) and capacity > 0.0):
            raise ValueError(f"a bucket needs rate >= 0 and capacity > 0, not {rate!r} and {capacity!r}")
        self.rate = rate
        self.capacity = capacity
        self._tokens = capacity
        self._stamp = -INFINITY

    cdef int _refill(self, double now) except -1:
        if isnan(now):
            raise ValueError("now is not a number")
        if self._stamp == -INFINITY:
            self._stamp = now
        elif now > self._stamp:
            self._tokens += (now - self._stamp) * self.rate
            self._stamp = now
        if self._tokens > self.capacity:
            self._tokens = self.capacity
        return 0

    def can_consume(self, double now, double tokens=1.0):
        """Take the tokens if they are there."""
        self._refill(now)
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True

    def expected_time(self, double now, double tokens=1.0):
        """Seconds until that many tokens are there; 0.0 if they are, infinity if they never will be."""
        self._refill(now)
        if self._tokens >= tokens:
            return 0.0
        if self.rate == 0.0 or tokens > self.capacity:
            return INFINITY
        return (tokens - self._tokens) / self.rate


@cython.final
cdef class Timer:
    """One entry of a TimerHeap."""

    cdef readonly double when
    cdef readonly object payload
    cdef readonly bint cancelled
    cdef int64_t _order
    cdef TimerHeap _heap  # None once it has been popped

    def cancel(self):
        """Take the deadline back and let go of the payload; cancelling twice, or too late, is legal."""
        # Held until the end: dropping it may run a finalizer, which may use this heap.
        payload = self.payload
        self.payload = None
        self.cancelled = True
        if self._heap is not None:
            heap = self._heap
            self._heap = None
            heap._forget_one()

    def __repr__(self):
        return f"<Timer at {self.when:.3f}{' cancelled' if self.cancelled else ''}>"


@cython.final
cdef class TimerHeap:
    """Deadlines in order; cancelling is lazy and O(1). One owner; not for two threads at once."""

    cdef list _timers
    cdef Py_ssize_t _dead
    cdef int64_t _next

    def __cinit__(self):
        self._timers = []

    def __len__(self):
        return len(self._timers) - self._dead

    def add(self, double when, payload):
        """Add a deadline, on whatever clock `pop_due` is asked with; equal deadlines keep their order."""
        cdef Timer timer
        if isnan(when):
            raise ValueError("a deadline must be a number")
        timer = Timer.__new__(Timer)
        timer.when = when
        timer.payload = payload
        timer._order = self._next
        timer._heap = self
        self._next += 1
        self._timers.append(timer)
        self._up(len(self._timers) - 1)
        return timer

    def next_due(self):
        """The earliest live deadline, or None."""
        self._drop_dead()
        return (<Timer>self._timers[0]).when if self._timers else None

    def pop_due(self, double now):
        """Remove and return what is due, earliest first."""
        cdef list due = []
        cdef Timer timer
        while True:
            self._drop_dead()
            if not self._timers or (<Timer>self._timers[0]).when > now:
                return due
            timer = self._pop()
            timer._heap = None
            due.append(timer)

    def live(self):
        """A snapshot of live entries, in no order."""
        cdef list found = []
        for timer in self._timers:
            if not (<Timer>timer).cancelled:
                found.append(timer)
        return found

    cdef int _forget_one(self) except -1:
        self._dead += 1
        if self._dead * 2 > len(self._timers) and self._dead > 32:
            self._timers = self.live()
            self._dead = 0
            for i in range(len(self._timers) // 2 - 1, -1, -1):
                self._down(i)
        return 0

    cdef int _drop_dead(self) except -1:
        while self._timers and (<Timer>self._timers[0]).cancelled:
            self._pop()
            self._dead -= 1
        return 0

    cdef Timer _pop(self):
        cdef Timer last = self._timers.pop()
        cdef Timer first
        if not self._timers:
            return last
        first = self._timers[0]
        self._timers[0] = last
        self._down(0)
        return first

    cdef int _up(self, Py_ssize_t at) except -1:
        cdef list timers = self._timers
        cdef Timer timer = timers[at]
        cdef Py_ssize_t above
        while at > 0:
            above = (at - 1) >> 1
            if not _before(timer, <Timer>timers[above]):
                break
            timers[at] = timers[above]
            at = above
        timers[at] = timer
        return 0

    cdef int _down(self, Py_ssize_t at) except -1:
        cdef list timers = self._timers
        cdef Timer timer = timers[at]
        cdef Py_ssize_t below, n = len(timers)
        while True:
            below = 2 * at + 1
            if below >= n:
                break
            if below + 1 < n and _before(<Timer>timers[below + 1], <Timer>timers[below]):
                below += 1
            if not _before(<Timer>timers[below], timer):
                break
            timers[at] = timers[below]
            at = below
        timers[at] = timer
        return 0


cdef inline bint _before(Timer a, Timer b) noexcept:
    return a.when < b.when or (a.when == b.when and a._order < b._order)
