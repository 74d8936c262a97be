# cython: language_level=3, boundscheck=True, wraparound=False, embedsignature=True
"""The compiled leaf: header decoding, token bucket, revoked set, timer heap, and a watch over the interpreter lock.

A signal handler written in Python runs only between bytecodes, and no method here runs any between its
first and its last change to an object. So the bookkeeping below is a critical section for free: neither a
handler nor another thread sees it half done. Where the garbage collector could break that (it runs at
allocations of containers up to Python 3.11), the allocation stands before the first change.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_AsUTF8String
from libc.math cimport INFINITY, isfinite, isnan
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text) noexcept
    int Py_AddPendingCall(int (*func)(void *) except -1, void *arg) noexcept nogil

cdef extern from "string.h":
    const void *memmem(const void *haystack, size_t n, const void *needle, size_t m) noexcept

import json
import json.encoder
import os
from datetime import datetime, timezone
from hashlib import blake2b

import msgspec

include "_holding.pxi"
include "_json.pxi"
include "_moment.pxi"
include "_request.pxi"
include "_revoked.pxi"
include "_timing.pxi"
