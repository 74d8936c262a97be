# A bounded set of task ids.


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

    def items(self):
        """Each id with the time it was added at, oldest first."""
        cdef list stamps = []
        cdef list found = self.ids()
        cdef uint32_t at = self._oldest
        while at != NOBODY:
            stamps.append(self._entries[at].stamp)
            at = self._entries[at].newer
        return list(zip(found, stamps))

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
