# What the gates and timers count in: token bucket, revoked set, timer heap. Time is always handed in.


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


cdef struct Entry:
    uint8_t key[16]
    double stamp
    uint32_t older
    uint32_t newer


cdef uint32_t NOBODY = 0xFFFFFFFF


cdef inline int _nibble(Py_UCS4 c) noexcept:
    if c'0' <= c <= c'9':
        return <int>c - 48
    if c'a' <= c <= c'f':
        return <int>c - 87
    return -1


cdef bint _pack(str task_id, uint8_t *key) except -1:
    """The 16 bytes of a UUID in its canonical lower-case text; False for any other text."""
    cdef Py_ssize_t i, at = 0
    cdef int high, low
    if len(task_id) != 36:
        return False
    if task_id[8] != c'-' or task_id[13] != c'-' or task_id[18] != c'-' or task_id[23] != c'-':
        return False
    for i in range(16):
        if i == 4 or i == 6 or i == 8 or i == 10:
            at += 1
        high = _nibble(task_id[at])
        low = _nibble(task_id[at + 1])
        if high < 0 or low < 0:
            return False
        key[i] = <uint8_t>(high << 4 | low)
        at += 2
    return True


cdef str _unpack(const uint8_t *key):
    text = (<bytes>key[:16]).hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@cython.final
cdef class RevokedSet:
    """A bounded set of task ids that forgets after `ttl` seconds, oldest first; 16 bytes a UUID.

    The ids stand in one array, linked from oldest to newest, found through open addressing: 38 bytes each, all
    told, where a dict of strings takes about 180. An id that is no UUID is found by a keyed digest and keeps
    its text beside the array, under the same bound.
    Safe to use from several threads: every method is one step under the interpreter lock.
    """

    cdef readonly Py_ssize_t maxlen
    cdef readonly double ttl
    cdef Entry *_entries
    cdef uint32_t *_table  # position in _entries, or NOBODY
    cdef uint32_t _width  # of _table
    cdef uint32_t _count, _used, _spare, _oldest, _newest
    cdef uint64_t _seed
    cdef dict _names  # position in _entries -> id, for ids that are no UUID

    def __cinit__(self, Py_ssize_t maxlen=50_000, double ttl=10_800.0):
        if not 1 <= maxlen <= 0x40000000:
            raise ValueError(f"maxlen must be between 1 and 2**30, not {maxlen}")
        if isnan(ttl) or ttl <= 0.0:
            raise ValueError(f"ttl must be a positive number of seconds, not {ttl!r}")
        self.maxlen = maxlen
        self.ttl = ttl
        self._width = <uint32_t>(maxlen + (maxlen >> 1) + 1)
        # A private seed: ids are chosen by whoever may revoke, and should not be able to collide on purpose.
        self._seed = int.from_bytes(os.urandom(8), "little")
        self._oldest = self._newest = self._spare = NOBODY
        self._names = {}

    def __dealloc__(self):
        free(self._entries)
        free(self._table)

    def __len__(self):
        return <Py_ssize_t>self._count

    def add(self, str task_id not None, double now):
        """Add the id as the newest; beyond `maxlen` the oldest one goes."""
        if isnan(now):
            raise ValueError("now is not a number")
        self._add(task_id, now)

    def update(self, ids, double now):
        """Add all of them, in that order."""
        cdef list wanted = list(ids)
        if isnan(now):
            raise ValueError("now is not a number")
        for task_id in wanted:
            if not isinstance(task_id, str):
                raise TypeError(f"a task id is a string, not {type(task_id).__name__}")
        for task_id in wanted:
            self._add(<str>task_id, now)

    def discard(self, str task_id not None):
        """Forget the id if it is there."""
        cdef uint8_t key[16]
        cdef uint32_t at
        if self._count == 0:
            return
        self._key(task_id, key)
        at = self._table[self._find(key)]
        if at != NOBODY:
            self._remove(at)

    def contains(self, str task_id not None, double now):
        """Whether the id was added less than `ttl` seconds before `now`."""
        cdef uint8_t key[16]
        cdef uint32_t at
        if self._count == 0:
            return False
        self._key(task_id, key)
        at = self._table[self._find(key)]
        return at != NOBODY and now - self._entries[at].stamp < self.ttl

    def purge(self, double now):
        """Forget what has expired; costs what it forgets."""
        while self._oldest != NOBODY and now - self._entries[self._oldest].stamp >= self.ttl:
            self._remove(self._oldest)

    def ids(self):
        """Oldest first."""
        cdef list found = []
        cdef uint32_t at = self._oldest
        while at != NOBODY:
            name = self._names.get(at) if self._names else None
            found.append(_unpack(self._entries[at].key) if name is None else name)
            at = self._entries[at].newer
        return found

    def __sizeof__(self):
        """Bytes with the array and the table, without the texts of ids that are no UUID."""
        cdef Py_ssize_t arrays = 0
        if self._entries is not NULL:
            arrays = self.maxlen * sizeof(Entry) + self._width * sizeof(uint32_t)
        return object.__sizeof__(self) + arrays

    cdef int _key(self, str task_id, uint8_t *key) except -1:
        cdef bytes digest
        if not _pack(task_id, key):
            digest = blake2b(
                task_id.encode("utf-8", "surrogatepass"), digest_size=16, key=self._seed.to_bytes(8, "little")
            ).digest()
            memcpy(key, <const uint8_t *><const char *>digest, 16)
        return 0

    cdef int _add(self, str task_id, double now) except -1:
        cdef uint8_t key[16]
        cdef uint32_t at
        cdef bint is_uuid = _pack(task_id, key)
        if not is_uuid:
            self._key(task_id, key)
        if self._entries is NULL:
            self._allocate()
        # From here on nothing allocates a container: the collector cannot run, no other thread can come in.
        at = self._table[self._find(key)]
        if at != NOBODY:
            self._remove(at)
        elif self._count == self.maxlen:
            self._remove(self._oldest)
        if self._spare != NOBODY:
            at = self._spare
            self._spare = self._entries[at].newer
        else:
            at = self._used
            self._used += 1
        if not is_uuid:
            self._names[at] = task_id
        memcpy(self._entries[at].key, key, 16)
        self._entries[at].stamp = now
        self._entries[at].older = self._newest
        self._entries[at].newer = NOBODY
        if self._newest != NOBODY:
            self._entries[self._newest].newer = at
        else:
            self._oldest = at
        self._newest = at
        self._table[self._find(key)] = at
        self._count += 1
        return 0

    cdef int _allocate(self) except -1:
        # Not before the first UUID: most workers never hear of a revoked task. Pages come as they are touched.
        cdef uint32_t i
        self._entries = <Entry *>malloc(self.maxlen * sizeof(Entry))
        self._table = <uint32_t *>malloc(self._width * sizeof(uint32_t))
        if self._entries is NULL or self._table is NULL:
            free(self._entries)
            free(self._table)
            self._entries = NULL
            self._table = NULL
            raise MemoryError
        for i in range(self._width):
            self._table[i] = NOBODY
        return 0

    cdef uint32_t _home(self, const uint8_t *key) noexcept:
        cdef uint64_t a, b
        memcpy(&a, key, 8)
        memcpy(&b, key + 8, 8)
        a = (a ^ self._seed) * <uint64_t>0x9E3779B97F4A7C15
        a = (a ^ (a >> 32) ^ b) * <uint64_t>0xD6E8FEB86659FD93
        a = (a ^ (a >> 32)) * <uint64_t>0xD6E8FEB86659FD93
        return <uint32_t>(((a >> 32) * self._width) >> 32)

    cdef uint32_t _find(self, const uint8_t *key) noexcept:
        """The place in the table that holds the key, or the empty one where it belongs."""
        cdef uint32_t place = self._home(key)
        while self._table[place] != NOBODY and memcmp(self._entries[self._table[place]].key, key, 16) != 0:
            place += 1
            if place == self._width:
                place = 0
        return place

    cdef int _remove(self, uint32_t at) except -1:
        cdef Entry *entry = &self._entries[at]
        cdef uint32_t hole = self._find(entry.key)
        cdef uint32_t place = hole, home
        # Linear probing: what stands behind the hole and could not have stood further back moves into it.
        while True:
            place += 1
            if place == self._width:
                place = 0
            if self._table[place] == NOBODY:
                break
            home = self._home(self._entries[self._table[place]].key)
            if (place > hole and (home <= hole or home > place)) or (place < hole and place < home <= hole):
                self._table[hole] = self._table[place]
                hole = place
        self._table[hole] = NOBODY
        if entry.older != NOBODY:
            self._entries[entry.older].newer = entry.newer
        else:
            self._oldest = entry.newer
        if entry.newer != NOBODY:
            self._entries[entry.newer].older = entry.older
        else:
            self._newest = entry.older
        if self._names:
            self._names.pop(at, None)
        entry.newer = self._spare
        self._spare = at
        self._count -= 1
        return 0


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
