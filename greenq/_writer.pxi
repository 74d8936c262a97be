# A JSON writer for plain values only, byte for byte what the standard library writes.

cdef object _quote = json.encoder.encode_basestring_ascii
cdef int MAX_PLAIN_DEPTH = 16


def plain_json(value):
    """JSON text of a value made of None, bool, int, finite float, str, list, tuple and dict with str keys only.

    The text is what `json.dumps` gives, default separators and ASCII only. Anything else (other types,
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
