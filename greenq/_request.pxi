# The decoder of task messages: raw bytes, or what a transport took apart already, into a Request.
# wire.md 5.1 (headers), 5.2 (properties), 5.9 (envelope). Nothing from the wire is trusted: every field is
# checked for its type before it is kept, and every failure is a Malformed.

cdef Py_ssize_t MAX_HEADERS = 1000


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
    cdef public bint stamped
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
    try:
        envelope = _load(raw)
    except Exception as error:
        raise Malformed("envelope", f"not JSON: {type(error).__name__}: {str(error)[:120]}") from None
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
    request.stamped = bool(value)
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
