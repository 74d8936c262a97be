# Noticing that C code keeps the interpreter lock: the one thing here that has a thread and reads a clock.

cdef double _SLICE = 0.05  # seconds between two looks


cdef double _monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


@cython.final
cdef class HoldWatch:
    """Notices that nobody has had the interpreter lock for too long, and looks who kept it.

    Its thread never takes the lock. A stack that is read without it while Python runs ends the process, which
    is what faulthandler's watchdog does; so `over` is left with the interpreter to be called by the main thread
    at its next step, which is where the C code returns to.
    """

    cdef double _limit
    cdef object _over
    cdef double _watched  # seconds; only the thread writes it
    cdef double _fed  # what it was when the lock was last seen to go round
    cdef bint _asked
    cdef bint _stopped

    def __init__(self, double limit, over):
        if not (isfinite(limit) and limit > 0.0):
            raise ValueError(f"the limit must be above 0, not {limit!r}")
        self._limit = limit
        self._over = over

    def feed(self):
        """Say that the lock goes round."""
        self._fed = self._watched

    def stop(self):
        """Let `serve` return."""
        self._stopped = True

    def serve(self):
        """Watch, until `stop`; in a native thread of its own."""
        # For ever: the interpreter may still hold a call to it when the thread has ended.
        Py_INCREF(self)
        with nogil:
            self._look_on()

    cdef void _look_on(self) noexcept nogil:
        cdef double before, passed
        cdef timespec pause
        pause.tv_sec = 0
        pause.tv_nsec = <long>(_SLICE * 1e9)
        while not self._stopped:
            before = _monotonic()
            nanosleep(&pause, NULL)
            passed = _monotonic() - before
            # This thread needs no lock: where it is late itself, the whole process or machine stood still.
            self._watched += passed if passed < 2 * _SLICE else _SLICE
            if self._watched - self._fed > self._limit and not self._asked:
                self._asked = Py_AddPendingCall(_call_over, <void *>self) == 0

    cdef int _tell(self) except -1:
        cdef double seconds = self._watched - self._fed
        self._asked = False
        self._fed = self._watched
        # What it raises is an ending that struck meanwhile: it goes on into the task.
        self._over(seconds)
        return 0


cdef int _call_over(void *watch) except -1 with gil:
    return (<HoldWatch>watch)._tell()
