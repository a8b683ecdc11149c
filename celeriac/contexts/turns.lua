-- A context is held by one job at a time, the others wait behind it in the order of their submission. Its turns are a list,
-- its version counts the changes. Nothing ages while a job holds it. `behind` holds the contexts with a line, by when upkeep
-- looks whether their holder is still there.
local LOOK = 60000 -- ms between two of these looks at a context

-- Whether all of these are whole numbers, those that are set at all.
local function are_counts(...)
  for i = 1, select('#', ...) do
    local text = select(i, ...)
    if text and not string.match(text, '^%d+$') then return false end
  end
  return true
end

local function context_holder(tenant, context) return redis.call('HGET', K.context(tenant, context), 'holder') end

local function context_hold(tenant, context, id)
  redis.call('HSET', K.context(tenant, context), 'holder', id)
  -- Versions begin anew with a context that was deleted: this tells it from the one that it takes the place of.
  if redis.call('HEXISTS', K.context(tenant, context), 'born') == 0 then
    redis.call('HSET', K.context(tenant, context), 'born', redis.call('INCR', K.turn()))
  end
  redis.call('PERSIST', K.context(tenant, context))
  redis.call('PERSIST', K.turns(tenant, context))
end

-- Whether a context that was read at that version, and born then, is no other one now. Without turns all are alike, and of some
-- nobody knows when they were born.
local function context_same(read_version, read_born, born)
  return read_version == '0' or not read_born or read_born == '' or read_born == born
end

local function context_wait(tenant, context, id, seq)
  redis.call('ZADD', K.line(tenant, context), seq, id)
  redis.call('ZADD', K.behind(), 'NX', now + LOOK, tenant .. ':' .. context)
end

local function context_left(tenant, context)
  if redis.call('EXISTS', K.line(tenant, context)) == 0 then redis.call('ZREM', K.behind(), tenant .. ':' .. context) end
end

-- The holder lets go. Answers the job that follows, which now holds the context; with none, the context begins to age.
-- A job that only waited leaves the line.
local function context_release(tenant, context, id, ttl)
  if context_holder(tenant, context) ~= id then
    if redis.call('ZREM', K.line(tenant, context), id) == 1 then context_left(tenant, context) end
    return nil
  end
  local following = redis.call('ZPOPMIN', K.line(tenant, context))[1]
  if following then
    context_left(tenant, context)
    redis.call('HSET', K.context(tenant, context), 'holder', following)
    return following
  end
  redis.call('HDEL', K.context(tenant, context), 'holder')
  redis.call('PEXPIRE', K.context(tenant, context), ttl)
  redis.call('PEXPIRE', K.turns(tenant, context), ttl)
end

local function messages_in(turn) return tonumber(string.match(turn, '^(%d+):')) or 0 end

-- Append one turn, written "<messages>:<packed>", unless the context is no longer at the version that the job read. Older
-- turns go, whole ones only, while there are too many messages or bytes; the newest always stays.
local function context_append(tenant, context, version, turn, max_messages, max_bytes)
  local meta, turns = K.context(tenant, context), K.turns(tenant, context)
  local is, messages, bytes = unpack(redis.call('HMGET', meta, 'version', 'messages', 'bytes'))
  if (is or '0') ~= tostring(version) then return false end
  -- Before anything is written: a turn is appended whole or not at all.
  assert(are_counts(messages, bytes), 'no number')
  redis.call('RPUSH', turns, turn)
  redis.call('HINCRBY', meta, 'version', 1)
  messages = redis.call('HINCRBY', meta, 'messages', messages_in(turn))
  bytes = redis.call('HINCRBY', meta, 'bytes', #turn)
  while (messages > max_messages or bytes > max_bytes) and redis.call('LLEN', turns) > 1 do
    local gone = redis.call('LPOP', turns)
    messages = redis.call('HINCRBY', meta, 'messages', -messages_in(gone))
    bytes = redis.call('HINCRBY', meta, 'bytes', -#gone)
  end
  return true
end
