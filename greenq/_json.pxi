# JSON: scanned before it is decoded, decoded the fast way where that gives the same, written where it is plain.

cdef object _decode_json = msgspec.json.decode
cdef object _decode_tagged = None  # kombu.utils.json.loads, imported with the first message that needs it
cdef object _quote = json.encoder.encode_basestring_ascii

cdef Py_ssize_t MAX_NESTING = 128
cdef int MAX_PLAIN_DEPTH = 16


def load_json(bytes data not None):
    """Decode JSON as kombu does, typed values (`{"__type__": ..., "__value__": ...}`) included.

    Raises:
        ValueError: nested deeper than 128 levels.
        Exception: of many kinds; the text is not JSON, or a typed value in it is none.
    """
    return _load(data)


def too_deep(bytes data not None, Py_ssize_t limit=MAX_NESTING):
    """Say whether JSON text nests arrays and objects deeper than `limit`."""
    return _too_deep(data, limit)


cdef bint _too_deep(bytes data, Py_ssize_t limit) except -1:
    cdef Py_ssize_t i = 0, depth = 0, n = len(data)
    if _brackets(PyBytes_AS_STRING(data), n) <= limit:
        return False
    cdef unsigned char c
    cdef bint quoted = False
    while i < n:
        c = data[i]
        if quoted:
            if c == 92:  # a backslash: the next byte cannot end the string
                i += 1
            elif c == 34:
                quoted = False
        elif c == 34:
            quoted = True
        elif c == 91 or c == 123:
            depth += 1
            if depth > limit:
                return True
        elif c == 93 or c == 125:
            depth -= 1
        i += 1
    return False


cdef object _load(bytes data):
    global _decode_tagged
    if _too_deep(data, MAX_NESTING):
        raise ValueError(f"nested deeper than {MAX_NESTING} levels")
    # Seen by its plain text: who escapes letters of it does so to hide it, and then it is data.
    if memmem(PyBytes_AS_STRING(data), len(data), b'"__type__"', 10) is not NULL:
        if _decode_tagged is None:
            from kombu.utils.json import loads
            _decode_tagged = loads
        return _decode_tagged(data)
    try:
        return _decode_json(data)
    except Exception:
        # msgspec refuses a little that the standard library takes (NaN, lone surrogates); that one decides.
        return json.loads(data.decode("utf-8"))


cdef Py_ssize_t _brackets(const char *data, Py_ssize_t n) noexcept:
    """How many [ and { there are, eight bytes at a time: this is all that an ordinary message pays."""
    cdef uint64_t word, low = 0x7F7F7F7F7F7F7F7FULL, found
    cdef Py_ssize_t i = 0, count = 0
    while i + 8 <= n:
        memcpy(&word, data + i, 8)
        # Bit 5 is all that [ and { differ in; what matches becomes a zero byte, then a set top bit.
        word = (word | 0x2020202020202020ULL) ^ 0x7B7B7B7B7B7B7B7BULL
        found = ~(((word & low) + low) | word | low)
        count += <Py_ssize_t>(((found >> 7) * 0x0101010101010101ULL) >> 56)
        i += 8
    while i < n:
        if (data[i] | 0x20) == 0x7B:
            count += 1
        i += 1
    return count


def plain_json(value):
    """JSON text of a value made of None, bool, int, finite float, str, list, tuple and dict with str keys only.

    The text is, byte for byte, what `json.dumps` gives, default separators and ASCII only. Anything else (other types,
    subclasses, NaN, deep nesting) gives None: it is for kombu's encoder, which has hooks for it.
    """
    cdef list parts = []
    return "".join(parts) if _write(value, parts, 0) else None


cdef bint _write(value, list parts, int depth) except -1:
    kind = type(value)
    if kind is str:
        parts.append(_quote(value))
    elif value is None:
        parts.append("null")
    elif value is True:
        parts.append("true")
    elif value is False:
        parts.append("false")
    elif kind is int:
        if not -0x8000000000000000 <= value <= 0x7FFFFFFFFFFFFFFF:
            return False
        parts.append(str(value))
    elif kind is float:
        if not isfinite(<double>value):
            return False
        parts.append(repr(value))
    elif kind is dict:
        return _write_object(<dict>value, parts, depth + 1)
    elif kind is list or kind is tuple:
        return _write_array(value, parts, depth + 1)
    else:
        return False
    return True


cdef bint _write_array(values, list parts, int depth) except -1:
    cdef bint first = True
    if depth > MAX_PLAIN_DEPTH:
        return False
    parts.append("[")
    for value in values:
        if not first:
            parts.append(", ")
        first = False
        if not _write(value, parts, depth):
            return False
    parts.append("]")
    return True


cdef bint _write_object(dict values, list parts, int depth) except -1:
    cdef bint first = True
    if depth > MAX_PLAIN_DEPTH:
        return False
    parts.append("{")
    for key, value in values.items():
        if type(key) is not str:
            return False
        if not first:
            parts.append(", ")
        first = False
        parts.append(_quote(key))
        parts.append(": ")
        if not _write(value, parts, depth):
            return False
    parts.append("}")
    return True
