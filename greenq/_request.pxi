# The decoder of task messages: raw bytes, or what a transport took apart already, into a Request.
# wire.md 5.1 (headers), 5.2 (properties), 5.9 (envelope). Nothing from the wire is trusted: every field is
# checked for its type before it is kept, and every failure is a Malformed.

cdef object _decode_json = msgspec.json.decode
cdef object _decode_tagged = None  # kombu.utils.json.loads, imported with the first message that needs it

cdef Py_ssize_t MAX_HEADERS = 1000
cdef Py_ssize_t MAX_NESTING = 128


class Malformed(ValueError):
    """A message that cannot be decoded; `reason` is one of `exceptions.MessageError`'s codes."""

    def __init__(self, reason, detail="", task_id="", task="", reply_to=""):
        super().__init__(reason, detail, task_id, task, reply_to)
        self.reason = reason
        self.detail = detail
        self.task_id = task_id
        self.task = task
        self.reply_to = reply_to

    def __str__(self):
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


# Not tracked by the collector: ten thousand waiting requests would cost more there than to decode them.
# What a request holds are strings, bytes, numbers and decoded JSON; none of them can point back at it.
@cython.final
@cython.no_gc
cdef class Request:
    """One decoded task message: the headers that decide about it, and its body still raw."""

    cdef public str id
    cdef public str name
    cdef public str shadow
    cdef public str queue
    cdef public object tag
    cdef public object epoch
    cdef public int protocol
    cdef public object eta
    cdef public object expires
    cdef public object retries
    cdef public object soft_limit
    cdef public object hard_limit
    cdef public object ignore_result
    cdef public str root_id
    cdef public str parent_id
    cdef public str group
    cdef public object group_index
    cdef public str origin
    cdef public str argsrepr
    cdef public str kwargsrepr
    cdef public str reply_to
    cdef public str correlation_id
    cdef public int priority
    cdef public bint redelivered
    cdef public str exchange
    cdef public str routing_key
    cdef public str content_type
    cdef public str content_encoding
    cdef public str compression
    cdef public object body
    cdef public str body_encoding
    cdef public bytes raw
    cdef public str state
    cdef public bint acked
    cdef public double received
    cdef public double started
    cdef dict _headers
    cdef dict _properties

    @property
    def display_name(self):
        """`shadow` if one was sent, else `name`: what logs, events and inspect show."""
        return self.shadow or self.name

    @property
    def headers(self):
        """All headers as sent; decoded again from `raw` at each access, so that what waits keeps bytes."""
        if self.raw is None:
            return self._headers
        return (<dict>_load(self.raw)).get("headers") or {}

    @property
    def properties(self):
        """All properties as sent; as `headers`."""
        if self.raw is None:
            return self._properties
        return (<dict>_load(self.raw))["properties"]

    def __repr__(self):
        return f"<Request {self.display_name!r} {self.id!r} {self.state}>"


def decode_envelope(bytes raw not None, str queue not None, tag, epoch=0):
    """Decode one kombu virtual-transport envelope (wire.md 5.9).

    Raises:
        Malformed: for anything that is not a task message of protocol 1 or 2.
    """
    cdef Request request = Request.__new__(Request)
    envelope = _load(raw)
    if type(envelope) is not dict:
        raise Malformed("envelope", "the envelope is not a JSON object")
    headers = (<dict>envelope).get("headers")
    if headers is None:
        headers = {}
    properties = (<dict>envelope).get("properties")
    request.raw = raw
    request.queue = queue
    request.tag = tag
    request.epoch = epoch
    try:
        if type(headers) is not dict:
            raise Malformed("envelope", "headers is not an object")
        if type(properties) is not dict:
            raise Malformed("envelope", "properties is missing or not an object")
        body = (<dict>envelope).get("body")
        if type(body) is not str:
            raise Malformed("envelope", "body is missing or not a string")
        request.body = body
        encoding = (<dict>properties).get("body_encoding")
        if encoding is None:
            request.body_encoding = ""
        elif encoding == "base64":
            request.body_encoding = "base64"
        else:
            raise Malformed("body_encoding", f"unknown body_encoding {_short(encoding)}")
        _fill(
            request, <dict>headers, <dict>properties,
            (<dict>envelope).get("content-type"), (<dict>envelope).get("content-encoding"),
        )
    except Malformed as error:
        _say_whose(error, headers, properties)
        raise
    return request


def decode_parts(headers, properties, content_type, content_encoding, body, str queue not None, tag, epoch=0):
    """Build a request from a message a transport has taken apart already (AMQP and generic kombu).

    `body` has no transport encoding any more, whatever `properties["body_encoding"]` says. The exchange,
    routing key and redelivered flag are read from `properties["delivery_info"]`.

    Raises:
        Malformed: as `decode_envelope`.
    """
    cdef Request request = Request.__new__(Request)
    if headers is None:
        headers = {}
    request.queue = queue
    request.tag = tag
    request.epoch = epoch
    try:
        if not isinstance(headers, dict):
            raise Malformed("envelope", "headers is not an object")
        if not isinstance(properties, dict):
            raise Malformed("envelope", "properties is missing or not an object")
        if type(body) is not bytes and type(body) is not str:
            raise Malformed("envelope", "body is missing or neither bytes nor text")
        request._headers = headers
        request._properties = properties
        request.body = body
        request.body_encoding = ""
        _fill(request, headers, properties, content_type, content_encoding)
    except Malformed as error:
        _say_whose(error, headers, properties)
        raise
    return request


def parse_time(str text not None):
    """Unix seconds of an ISO 8601 moment; without an offset it is UTC.

    Read here, not by `datetime.fromisoformat`, because that one takes other texts on every Python version
    and raises OverflowError at the ends of the calendar.

    Raises:
        ValueError: not such a moment, or outside the years 1 to 9999 once in UTC.
    """
    return _unix(text)


def tagged(bytes data not None):
    """Whether JSON text may hold kombu's typed values, `{"__type__": ..., "__value__": ...}`."""
    return _tagged(data)


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


cdef bint _tagged(bytes data) noexcept:
    """Whether kombu's typed values may occur."""
    return memmem(PyBytes_AS_STRING(data), len(data), b'"__type__"', 10) is not NULL


cdef object _load(bytes raw):
    """The value of a JSON text, with kombu's typed values; whatever is wrong with it is Malformed."""
    global _decode_tagged
    if _too_deep(raw, MAX_NESTING):
        raise Malformed("envelope", f"nested deeper than {MAX_NESTING} levels")
    try:
        if _tagged(raw):
            if _decode_tagged is None:
                from kombu.utils.json import loads
                _decode_tagged = loads
            return _decode_tagged(raw)
        try:
            return _decode_json(raw)
        except Exception:
            # msgspec refuses a little that the standard library takes (NaN, lone surrogates); that one decides.
            return json.loads(raw.decode("utf-8"))
    except Exception as error:
        raise Malformed("envelope", f"not JSON: {type(error).__name__}: {str(error)[:120]}") from None


cdef str _short(value):
    """A repr that is safe to put into a message."""
    if type(value) is str:
        return repr((<str>value)[:40])
    return type(value).__name__


cdef int _say_whose(error, headers, properties) except -1:
    error.task_id = _readable(headers, "id")
    error.task = _readable(headers, "task")
    error.reply_to = _readable(properties, "reply_to")
    error.args = (error.reason, error.detail, error.task_id, error.task, error.reply_to)
    return 0


cdef str _readable(mapping, str key):
    value = mapping.get(key) if isinstance(mapping, dict) else None
    return value if isinstance(value, str) and _encodable(<str>value) else ""


cdef bint _encodable(str value) except -1:
    """Whether the text can be written as UTF-8; with lone surrogates it can be neither a key nor a log line."""
    if PyUnicode_IS_ASCII(value):
        return True
    try:
        PyUnicode_AsUTF8String(value)
    except UnicodeEncodeError:
        return False
    return True


cdef str _text(dict source, str key):
    value = source.get(key)
    if value is None:
        return None
    if type(value) is not str:
        raise Malformed("bad_header", f"{key} is not a string but {_short(value)}")
    if not _encodable(<str>value):
        raise Malformed("bad_header", f"{key} is not valid Unicode")
    return <str>value


cdef str _text_or_empty(dict source, str key):
    value = _text(source, key)
    return "" if value is None else value


cdef int _fill(Request request, dict headers, dict properties, content_type, content_encoding) except -1:
    if len(headers) > MAX_HEADERS:
        raise Malformed("bad_header", f"more than {MAX_HEADERS} headers")
    if type(content_type) is not str or not content_type:
        raise Malformed("content_type", "content-type is missing or not a string")
    if content_encoding is not None and type(content_encoding) is not str:
        raise Malformed("bad_header", "content-encoding is not a string")
    request.content_type = content_type
    request.content_encoding = content_encoding or "utf-8"
    request.state = "received"
    request.id = ""
    request.name = ""
    request.retries = 0
    request.compression = _text(headers, "compression")
    _fill_delivery(request, headers, properties)
    if "task" not in headers:
        request.protocol = 1  # everything else stands in the body: wire.messages.complete_v1
        return 0
    request.protocol = 2
    request.name = _text_or_empty(headers, "task")
    if not request.name:
        raise Malformed("bad_header", "task is empty")
    request.id = _text_or_empty(headers, "id")
    if not request.id:
        raise Malformed("no_id", "a message without an id cannot be settled or answered")
    _fill_fate(request, headers)
    request.shadow = _text(headers, "shadow")
    request.root_id = _text(headers, "root_id")
    request.parent_id = _text(headers, "parent_id")
    request.group = _text(headers, "group")
    request.origin = _text(headers, "origin")
    request.argsrepr = _text(headers, "argsrepr")
    request.kwargsrepr = _text(headers, "kwargsrepr")
    return 0


cdef int _fill_fate(Request request, dict headers) except -1:
    """The headers that decide whether, when and for how long it runs."""
    value = headers.get("retries")
    if value is not None:
        if type(value) is not int or not 0 <= value < 0x8000000000000000:
            raise Malformed("bad_header", f"retries is not a number of attempts but {_short(value)}")
        request.retries = value
    request.eta = _moment(headers, "eta")
    request.expires = _moment(headers, "expires")
    value = headers.get("timelimit")
    if value is not None:
        if (type(value) is not list and type(value) is not tuple) or len(value) != 2:
            raise Malformed("bad_header", "timelimit is not a pair [hard, soft]")
        request.hard_limit = _limit(value[0])
        request.soft_limit = _limit(value[1])
    value = headers.get("ignore_result")
    if value is not None and type(value) is not bool:
        raise Malformed("bad_header", f"ignore_result is not true, false or null but {_short(value)}")
    request.ignore_result = value
    value = headers.get("group_index")
    if value is not None and type(value) is not int:
        raise Malformed("bad_header", f"group_index is not an integer but {_short(value)}")
    request.group_index = value
    value = headers.get("stamped_headers")
    if value is not None and type(value) is not list and type(value) is not tuple:
        raise Malformed("bad_header", f"stamped_headers is not a list but {_short(value)}")
    return 0


cdef int _fill_delivery(Request request, dict headers, dict properties) except -1:
    request.reply_to = _text_or_empty(properties, "reply_to")
    request.correlation_id = _text_or_empty(properties, "correlation_id")
    value = properties.get("priority")
    if value is not None:
        if type(value) is not int:
            raise Malformed("bad_header", f"priority is not an integer but {_short(value)}")
        request.priority = 0 if value < 0 else 9 if value > 9 else value
    request.redelivered = headers.get("redelivered") is True
    request.exchange = ""
    request.routing_key = ""
    info = properties.get("delivery_info")
    if info is None:
        return 0
    if not isinstance(info, dict):
        raise Malformed("bad_header", f"delivery_info is not an object but {_short(info)}")
    request.exchange = _text_or_empty(info, "exchange")
    request.routing_key = _text_or_empty(info, "routing_key")
    if info.get("redelivered") is True:
        request.redelivered = True
    return 0


cdef object _limit(value):
    """Seconds as a float, or None; zero means "not given", as it does to Celery."""
    cdef double seconds
    if value is None:
        return None
    if type(value) is int or type(value) is float:
        try:
            seconds = value
        except OverflowError:
            seconds = INFINITY
        if isfinite(seconds) and seconds >= 0.0:
            return seconds if seconds > 0.0 else None
    raise Malformed("bad_header", f"timelimit holds {_short(value)} where seconds or null belong")


cdef object _moment(dict headers, str key):
    value = headers.get(key)
    if value is None:
        return None
    if type(value) is str:
        try:
            return _unix(<str>value)
        except ValueError as error:
            raise Malformed("bad_header", f"{key} {_short(value)}: {error}") from None
    if isinstance(value, datetime):
        # AMQP header tables and kombu's typed JSON can hold moments as such.
        if value.tzinfo is None:
            value = value.replace(tzinfo=timezone.utc)
        try:
            return value.timestamp()
        except OverflowError:
            raise Malformed("bad_header", f"{key} is outside the calendar") from None
    raise Malformed("bad_header", f"{key} is not an ISO 8601 text but {_short(value)}")


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
