# ISO 8601 moments as unix seconds.


def parse_time(str text not None):
    """Unix seconds of an ISO 8601 moment; without an offset it is UTC.

    Read here, not by `datetime.fromisoformat`, because that one takes other texts on every Python version
    and raises OverflowError at the ends of the calendar.

    Raises:
        ValueError: not such a moment, or outside the years 1 to 9999 once in UTC.
    """
    return _unix(text)


cdef int _digits(str text, Py_ssize_t at, Py_ssize_t count) except -1:
    cdef int value = 0
    cdef Py_ssize_t i
    cdef Py_UCS4 c
    if at + count > len(text):
        raise ValueError("it ends too early")
    for i in range(at, at + count):
        c = text[i]
        if not c'0' <= c <= c'9':
            raise ValueError(f"a digit was expected at position {i}")
        value = value * 10 + (<int>c - 48)
    return value


cdef int64_t _days(int year, int month, int day) except? -1:
    """Days since 1970-01-01 of a date of the Gregorian calendar."""
    cdef int last = 30 if month in (4, 6, 9, 11) else 31
    if month == 2:
        last = 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    if year < 1 or not 1 <= month <= 12 or not 1 <= day <= last:
        raise ValueError("there is no such day")
    # Counted in years that begin in March, so that the leap day comes last.
    cdef int64_t y = year - 1 if month <= 2 else year
    cdef int64_t era = y // 400
    cdef int64_t yoe = y - era * 400
    cdef int64_t doy = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 719468


cdef double _unix(str text) except? -1.0:
    """YYYY-MM-DD[(T| )HH:MM[:SS[.f...]][Z|+HH[:]MM[:SS]]] as unix seconds, to the microsecond."""
    cdef Py_ssize_t at = 10, n = len(text), digits = 0
    cdef int64_t micros = 0, seconds
    cdef int hour = 0, minute = 0, second = 0
    cdef Py_UCS4 c
    if n < 10 or text[4] != c'-' or text[7] != c'-':
        raise ValueError("not a date YYYY-MM-DD")
    seconds = _days(_digits(text, 0, 4), _digits(text, 5, 2), _digits(text, 8, 2)) * 86400
    if n > 10:
        if n < 16 or (text[10] != c'T' and text[10] != c't' and text[10] != c' ') or text[13] != c':':
            raise ValueError("not a time HH:MM")
        hour, minute, at = _digits(text, 11, 2), _digits(text, 14, 2), 16
        if n > at and text[at] == c':':
            second, at = _digits(text, 17, 2), 19
            if n > at and (text[at] == c'.' or text[at] == c','):
                at += 1
                while at < n and c'0' <= text[at] <= c'9':
                    if digits < 6:
                        micros = micros * 10 + (<int>text[at] - 48)
                    digits += 1
                    at += 1
                if digits == 0:
                    raise ValueError("a fraction without digits")
                while digits < 6:
                    micros *= 10
                    digits += 1
        if hour > 23 or minute > 59 or second > 59:
            raise ValueError("there is no such time of day")
        seconds += hour * 3600 + minute * 60 + second
        if n > at:
            seconds -= _offset(text, at)
    if not -62135596800 <= seconds <= 253402300799:
        raise ValueError("outside the years 1 to 9999")
    return <double>(seconds * 1000000 + micros) / 1e6


cdef int _offset(str text, Py_ssize_t at) except? -1:
    """Seconds east of UTC of what follows the time of day; it must end the text."""
    cdef Py_ssize_t n = len(text)
    cdef Py_UCS4 sign = text[at]
    cdef int minutes = 0, seconds = 0, total
    if sign == c'Z' or sign == c'z':
        if n != at + 1:
            raise ValueError("text after the Z")
        return 0
    if sign != c'+' and sign != c'-':
        raise ValueError("not an offset like +00:00")
    total = _digits(text, at + 1, 2) * 3600
    at += 3
    if at < n:
        if text[at] == c':':
            at += 1
        minutes = _digits(text, at, 2)
        at += 2
        if at < n:
            if text[at] == c':':
                at += 1
            seconds = _digits(text, at, 2)
            at += 2
    if at != n or total >= 86400 or minutes > 59 or seconds > 59:
        raise ValueError("not an offset like +00:00")
    total += minutes * 60 + seconds
    return total if sign == c'+' else -total
