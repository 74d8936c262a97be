"""The Lua scripts: every step that must not be cut in two runs inside Redis.

Three rules hold in all of them. Times come from Redis (`TIME`), never from a client. A message is written to
its new place in the same script that takes it from the old one. A script that only takes away or renews
starts with a write that needs no memory, because Redis, when full, refuses memory-taking writes only as a
script's first write; the claim does the opposite and starts with one, so that a full Redis refuses it whole.
"""

from __future__ import annotations

from greenq.transports.redis.connection import script

_NOW = """
local t = redis.call('TIME')
local now = string.format('%s.%06d', t[1], tonumber(t[2]))
"""

# A delayed message is a member "<length of tag> <length of key> <tag><key><envelope>": the tag keeps equal
# envelopes apart. Later ones are pushed first, so that the earliest due is the next to be taken.
_RELEASE = """
local function release(delayed)
  local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 100)
  for i = #due, 1, -1 do
    local tag, key, at = due[i]:match('^(%d+) (%d+) ()')
    redis.call('ZREM', delayed, due[i])
    local list, body = delayed .. '.dead', due[i]
    if at then
      local start = at + tonumber(tag)
      local wanted = due[i]:sub(start, start + tonumber(key) - 1)
      if type(redis.pcall('LLEN', wanted)) == 'number' then
        list, body = wanted, due[i]:sub(start + tonumber(key))
      end
    end
    redis.call('RPUSH', list, body)
  end
  return #due
end
"""

# KEYS: unacked, index, owners, closed, delayed, then a list per (priority step, queue), steps outermost.
# ARGV: limit, owner ('' for one without lease), series, first number, '1' to share, lease, queues, then a
# tail a queue.
# Returns queue number, envelopes, queue number, envelopes ...; a message's tag is the series and its number.
# An item is read, written to the hash and only then cut off, so no error in between can lose it.
CLAIM = script(
    _NOW
    + _RELEASE
    + """
local owner, series, number = ARGV[2], ARGV[3], tonumber(ARGV[4])
if owner == '' then redis.call('ZADD', KEYS[3], 'XX', now, '')
else redis.call('ZADD', KEYS[3], tonumber(now) + tonumber(ARGV[6]), owner) end
if redis.call('ZSCORE', KEYS[4], series) then return redis.error_reply('CLOSED this series of claims') end
release(KEYS[5])

local function entry(raw, tail)
  if raw:sub(1, 7) == '{"body"' and raw:sub(-1) == '}' then return raw end
  local ok, value = pcall(cjson.decode, raw)
  if ok and type(value) == 'table' and raw:match('^%s*{') then return raw end
  local hex = {}
  for byte = 0, 255 do hex[string.char(byte)] = string.format('%02x', byte) end
  return '{"greenq-raw": "' .. raw:gsub('.', hex) .. '", "body": "", "content-encoding": "utf-8", '
    .. '"content-type": "application/data", "headers": {}, "properties": {"priority": 0, '
    .. '"delivery_tag": "' .. redis.sha1hex(raw) .. '", '
    .. '"delivery_info": {"exchange": "", "routing_key": ' .. tail:sub(7, -2) .. '}}}'
end

local function take(key, tail, n)
  local items = redis.call('LRANGE', key, -n, -1)
  local hash, index, raws = {}, {}, {}
  for i = n, 1, -1 do
    local tag = string.format('%s%010d', series, number)
    number = number + 1
    hash[#hash + 1] = tag
    hash[#hash + 1] = '[' .. entry(items[i], tail) .. tail
    index[#index + 1] = now
    index[#index + 1] = tag
    raws[#raws + 1] = items[i]
  end
  redis.call('HSET', KEYS[1], unpack(hash))
  redis.call('ZADD', KEYS[2], unpack(index))
  redis.call('LTRIM', key, 0, -n - 1)
  return raws
end

local rest, queues, key, out = tonumber(ARGV[1]), tonumber(ARGV[7]), 6, {}
while rest > 0 and key <= #KEYS do
  local lists, open = {}, {}
  for q = 1, queues do
    local len = redis.pcall('LLEN', KEYS[key])
    if type(len) == 'number' and len > 0 then
      lists[#lists + 1] = {key = KEYS[key], queue = q, len = len, n = 0}
      open[#open + 1] = lists[#lists]
    end
    key = key + 1
  end
  while rest > 0 and #open > 0 do
    local share, again = ARGV[5] == '1' and math.ceil(rest / #open) or rest, {}
    for _, list in ipairs(open) do
      local n = math.min(share, list.len - list.n, rest)
      list.n = list.n + n
      rest = rest - n
      if list.n < list.len then again[#again + 1] = list end
    end
    open = again
  end
  for _, list in ipairs(lists) do
    if list.n > 0 then
      out[#out + 1] = list.queue
      out[#out + 1] = take(list.key, ARGV[7 + list.queue], list.n)
    end
  end
end
return out
"""
)

# KEYS: unacked, closed. ARGV: series, then tags. After this no claim of the series can happen any more, also
# not one that still lies unread in a socket; what it had claimed until now is the answer.
RECOVER = script(
    _NOW
    + """
redis.call('ZADD', KEYS[2], now, ARGV[1])
return redis.call('HMGET', KEYS[1], unpack(ARGV, 2))
"""
)

# KEYS: delayed, then lists. Returns whether something is there, and the seconds until the next one is due.
# Only reads: sent after CLIENT CACHING YES it makes Redis remember that this connection looked at these keys.
LOOK = script(
    _NOW
    + """
for i = 2, #KEYS do
  local len = redis.pcall('LLEN', KEYS[i])
  if type(len) == 'number' and len > 0 then return {1, ''} end
end
local head = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if #head == 0 then return {0, ''} end
local left = tonumber(head[2]) - tonumber(now)
if left <= 0 then return {1, ''} end
return {0, tostring(left)}
"""
)

# KEYS: unacked, index, delayed. ARGV, five an item: how, tag, key, envelope, extra.
# Returns how many were no longer there, then the keys that refused because they are not lists.
SETTLE = script(
    _NOW
    + """
local out = {0}
for i = #ARGV - 4, 1, -5 do
  local how, tag, key, body, extra = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  if redis.call('HEXISTS', KEYS[1], tag) == 0 then
    out[1] = out[1] + 1
  elseif how ~= 'delay' and type(redis.pcall('LLEN', key)) ~= 'number' then
    out[#out + 1] = key
  else
    redis.call('HDEL', KEYS[1], tag)
    redis.call('ZREM', KEYS[2], tag)
    if how == 'requeue' then
      redis.call('RPUSH', key, body)
    elseif how == 'delay' then
      redis.call('ZADD', KEYS[3], extra, body)
    else
      redis.call('LPUSH', key, body)
      redis.call('LTRIM', key, 0, 9999)
      redis.call('LPUSH', key .. '.info', extra .. ', "time": ' .. now .. '}')
      redis.call('LTRIM', key .. '.info', 0, 9999)
    end
  end
end
return out
"""
)

# KEYS: index, owners, closed. ARGV: owner, lease, then tags. Returns 1 where the owner had been given up for dead.
RENEW = script(
    _NOW
    + """
local buried = redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[2], tonumber(now) + tonumber(ARGV[2]), ARGV[1])
local index = {}
for i = 3, #ARGV do
  index[#index + 1] = now
  index[#index + 1] = ARGV[i]
end
if #index > 0 then redis.call('ZADD', KEYS[1], 'XX', unpack(index)) end
return buried
"""
)

# KEYS: owners, closed, delayed. Gives owners up for dead, and forgets those of yesterday.
BURY = script(
    _NOW
    + _RELEASE
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', tonumber(now) - 86400)
local silent = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)
for _, owner in ipairs(silent) do
  redis.call('ZREM', KEYS[1], owner)
  redis.call('ZADD', KEYS[2], now, owner)
end
release(KEYS[3])
return #silent
"""
)

# Whether an entry may be taken from its holder. A tag of ours is "<owner>/<series>-<number>"; no tag of
# kombu's has a slash. `score` is when its holder last said that it has it. Whether an owner lives is told by
# its own lease, which stands in the registry; the reclaimer's counts only where the registry was lost.
_ORPHAN = """
local function orphan(tag, score, owners, lease, timeout)
  local silence = tonumber(now) - tonumber(score)
  if silence > timeout then return true end
  local owner = tag:match('^(.*)/%x+%-%d+$')
  return owner and silence > lease and not redis.call('ZSCORE', owners, owner)
end
"""

# KEYS: unacked, index, owners. ARGV: lease, visibility timeout, how many to step over, how many to look at.
# Newest first, as kombu does: each is pushed to the head, so the oldest is the next to be taken.
# Returns how many were looked at, how many of them are to be left alone, then tag, score, value ...
SCAN = script(
    _NOW
    + _ORPHAN
    + """
local lease, timeout = tonumber(ARGV[1]), tonumber(ARGV[2])
local before = string.format('%.6f', tonumber(now) - math.min(lease, timeout))
local rows = redis.call('ZRANGE', KEYS[2], before, '-inf',
  'BYSCORE', 'REV', 'LIMIT', ARGV[3], ARGV[4], 'WITHSCORES')
local out, alive = {#rows / 2, 0}, 0
for i = 1, #rows, 2 do
  if orphan(rows[i], rows[i + 1], KEYS[3], lease, timeout) then
    out[#out + 1] = rows[i]
    out[#out + 1] = rows[i + 1]
    out[#out + 1] = redis.call('HGET', KEYS[1], rows[i]) or ''
  else
    alive = alive + 1
  end
end
out[2] = alive
return out
"""
)

# KEYS: unacked, index, owners. ARGV: lease, visibility timeout, then per item: tag, score as seen, envelope,
# number of lists, the lists. What changed since it was seen is left alone. Returns how many were given back,
# and how many could not be because a list's key holds something else.
RESTORE = script(
    _NOW
    + _ORPHAN
    + """
local lease, timeout = tonumber(ARGV[1]), tonumber(ARGV[2])
local restored, refused, i = 0, 0, 3
while i <= #ARGV do
  local tag, score, body, lists = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
  local good = redis.call('ZSCORE', KEYS[2], tag) == score and orphan(tag, score, KEYS[3], lease, timeout)
  if lists == 0 and redis.call('HEXISTS', KEYS[1], tag) == 1 then good = false end
  for k = i + 4, i + 3 + lists do
    if good and type(redis.pcall('LLEN', ARGV[k])) ~= 'number' then
      good = false
      refused = refused + 1
    end
  end
  if good then
    redis.call('ZREM', KEYS[2], tag)
    if redis.call('HDEL', KEYS[1], tag) == 1 then
      for k = i + 4, i + 3 + lists do redis.call('RPUSH', ARGV[k], body) end
      restored = restored + 1
    end
  end
  i = i + 4 + lists
end
return {restored, refused}
"""
)

# KEYS: log. ARGV: seconds an entry is kept, most entries, then entries, oldest first. One log is one key, so that
# it can be anywhere in a cluster. A score of the future can only be forged, and would never be trimmed.
KEEP_REVOKED = script(
    _NOW
    + """
local ttl, added = tonumber(ARGV[1]), {}
for i = 3, #ARGV do
  added[#added + 1] = string.format('%.6f', tonumber(now) + (i - 3) / 1000000)
  added[#added + 1] = ARGV[i]
end
redis.call('ZADD', KEYS[1], unpack(added))
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', tonumber(now) - ttl))
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('%.6f', tonumber(now) + ttl), '+inf')
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -tonumber(ARGV[2]) - 1)
redis.call('PEXPIRE', KEYS[1], math.ceil(ttl * 1000))
return 1
"""
)

# KEYS: log. ARGV: first and last rank, from the newest on, and the longest entry that is shown, in bytes.
# Returns the time, how many were looked at, how many of them are too long, then entry, score ...
READ_REVOKED = script(
    _NOW
    + """
local rows = redis.call('ZRANGE', KEYS[1], ARGV[1], ARGV[2], 'REV', 'WITHSCORES')
local out, longest = {now, #rows / 2, 0}, tonumber(ARGV[3])
for i = 1, #rows, 2 do
  if #rows[i] > longest then
    out[3] = out[3] + 1
  else
    out[#out + 1] = rows[i]
    out[#out + 1] = rows[i + 1]
  end
end
return out
"""
)
