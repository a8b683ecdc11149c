-- Books: what each scope has used of its caps, what every call cost, and who waits for money. Shared, after lines.lua.
-- A scope is everything, a tenant, an agent, a provider, a model or a value of a declared label; jobs with a cap are scopes for
-- those that work for them. Each has a sum for each window: the hour, the day, the week, the month, and ever. Amounts are whole
-- nano-dollars; they stay text where they may be large, since Lua's numbers lose digits beyond 2^53.
local WINDOWS = {'hour', 'day', 'week', 'month'}
-- Seconds, at most: the longest day has the two hours in it by which clocks go back somewhere.
local LENGTH = {hour = 3600, day = 93600, week = 612000, month = 2685600}
local OUTLIVES = 35 * 86400 -- seconds for which the sum of a window is kept after its end: answers may come late
-- In one span of the usage, and in the sums of all time, whose series are never forgotten. Those without an answer take half of it
-- at most: anybody may name models that there are not.
local MOST_SERIES, MOST_EVER = 5000, 1000
local MOST_FOLDED = 1000    -- in a span besides: tenants, agents and providers with calls to models that there was no room for
local KEPT_ALERTS, KEPT_CHANGES = 1000, 10000
local HARDLY = 5             -- percent of a cap, below which nothing is said of when it is reached
local RECENT = 50            -- jobs of an agent whose mean cost is told to who asks
local DEAREST, DEAREST_KEPT = 100, 35 * 86400 -- of the jobs of a day, and seconds for which they are listed
local PROMISED = 5000       -- ms for which room is kept for a job that was woken, until it has asked
local LINE = '$'            -- before a scope: its line is one among the lines of lanes, and no lane's name begins so

local function amount(text)
  local value = tonumber(text or '')
  return value and value >= 0 and value or 0
end

-- The windows that are open now, by the clocks of a time zone: name -> {start, end}, seconds. Nil where the store does not know
-- them: whoever asks has to say. said: {zone, hour's start, hour's end, day's ...}, or null.
local function windows_of(zone, said)
  local text = said and said ~= cjson.null and table.concat(said, ' ') or redis.pcall('GET', K.windows())
  if type(text) ~= 'string' then text = '' end
  local parts, found = {}, {}
  for part in string.gmatch(text, '%S+') do parts[#parts + 1] = part end
  if zone and parts[1] ~= zone then return nil end
  for i, name in ipairs(WINDOWS) do
    local from, to = tonumber(parts[2 * i] or ''), tonumber(parts[2 * i + 1] or '')
    if not (from and to) or now < from * 1000 or now >= to * 1000 or to - from > LENGTH[name] then return nil end
    found[name] = {parts[2 * i], to}
  end
  if said and said ~= cjson.null then call('SET', K.windows(), text) end
  return found
end

-- What a call is booked under: scopes, the windows that were open when it was admitted, and its series in the usage.
local function books_of(scopes, series, windows)
  local b = {scopes = scopes, series = series, starts = {}}
  for i, name in ipairs(WINDOWS) do b.starts[i] = windows[name][1] end
  return b
end

local function books_text(b)
  return table.concat(b.starts, ' ') .. '|' .. table.concat(b.scopes, ' ') .. '|' .. b.series
end

local function books_read(text)
  local starts, scopes, series = string.match(text or '', '^([%d ]+)|([^|]+)|([^|]*)$')
  if not starts then return nil end
  local b = {scopes = {}, series = series, starts = {}}
  for start in string.gmatch(starts, '%d+') do b.starts[#b.starts + 1] = start end
  for scope in string.gmatch(scopes, '%S+') do b.scopes[#b.scopes + 1] = scope end
  return b
end

-- When the window of a call began, or nil of one that is for ever.
local function start_of(b, window)
  for i, name in ipairs(WINDOWS) do
    if name == window then return b.starts[i] end
  end
end

local function use_key(b, scope, window)
  local start = start_of(b, window)
  return start and K.use(scope, window .. '.' .. start) or K.used(scope)
end

-- work: gets the key of each sum that the call is in, and how many seconds it is to be kept (nil for ever). Stops where it
-- answers something.
local function each_sum(b, work)
  for _, scope in ipairs(b.scopes) do
    local stops = work(K.used(scope))
    if stops then return stops end
    for i, name in ipairs(WINDOWS) do
      stops = work(K.use(scope, name .. '.' .. b.starts[i]), tonumber(b.starts[i]) + LENGTH[name] + OUTLIVES)
      if stops then return stops end
    end
  end
end

-- Reserve a call's bound in all its sums, or in none. Answers the key that is in the way, if one is.
local function books_reserve(b, bound)
  local done = {}
  local broken = each_sum(b, function(key, till)
    local sum = redis.pcall('HINCRBY', key, 'reserved', bound)
    if type(sum) == 'table' then return key end
    done[#done + 1] = key
    -- It may be new.
    if till and sum == tonumber(bound) then call('PEXPIRE', key, till * 1000 - now) end
  end)
  if broken then
    for _, key in ipairs(done) do call('HINCRBY', key, 'reserved', bound == '0' and 0 or '-' .. bound) end
  end
  return broken
end

-- Whether nothing is in any of its sums, and no alert was given for it.
local function unused(key)
  local values = redis.pcall('HVALS', key)
  for _, value in ipairs(values) do
    if value ~= '0' then return false end
  end
  return not values.err
end

-- Out of one of the sums and into another, in all windows that there are. Settling makes no new one, but of a call that was in none
-- of them: the store lost it. A key that holds something else is nobody's sum; the others go on.
local function books_shift(b, was, back, is, nanos)
  each_sum(b, function(key, till)
    local new = not (was and back)
    if not new then
      local left = redis.pcall('HINCRBY', key, was, back)
      if type(left) == 'table' then return end
      if left < 0 then
        -- It was not there.
        if call('HLEN', key) == 1 then call('DEL', key) else call('HSET', key, was, 0) end
        return
      end
    elseif till and till * 1000 <= now then return end
    if is then
      redis.pcall('HINCRBY', key, is, nanos)
      if new and till then redis.pcall('PEXPIRE', key, till * 1000 - now) end
    end
    -- Else models that somebody invented, and no provider knows, would be remembered: for ever, or until the month is long over.
    if (not is or nanos == '0') and unused(key) then call('DEL', key) end
  end)
end

-- The caps of scopes: a list of {scope, window, cap, soft thresholds}.
local function caps_of(scopes)
  local found = {}
  for i, text in ipairs(call('HMGET', K.budgets(), unpack(scopes))) do
    for window, cap, soft in string.gmatch(text or '', '(%a+) (%d+) ([%d,]*);') do
      found[#found + 1] = {scope = scopes[i], window = window, cap = tonumber(cap), soft = soft}
    end
  end
  return found
end

-- Settled and in doubt; and reserved. Exact up to 2^53, above every cap: of more, only that it is more is certain.
local function use_in(key)
  local reserved, in_doubt, settled = unpack(call('HMGET', key, 'reserved', 'in_doubt', 'cost'))
  return amount(in_doubt) + amount(settled), amount(reserved)
end

-- Whether a cap has room: nil, or why not: 'never' fits, 'held' until others settle, 'spent'.
local function no_room_in(firm, reserved, cap, bound)
  if firm + reserved + bound <= cap then return nil end
  return bound > cap and 'never' or firm + bound <= cap and 'held' or 'spent'
end

local WORSE = {held = 1, spent = 2, never = 3}

-- Those in line whose money is only held by others go before whoever comes.
local function is_waited_for(scope)
  local till = redis.pcall('HGET', K.lane(LINE .. scope), 'held')
  if type(till) ~= 'string' or amount(till) <= now or amount(till) > now + PROMISED then return false end
  local waiting = redis.pcall('ZCARD', K.lane_line(LINE .. scope))
  return type(waiting) == 'number' and waiting > 0
end

local function wait_for(scope)
  if type(redis.pcall('HSET', K.lane(LINE .. scope), 'held', now + PROMISED)) == 'number' then
    call('PEXPIRE', K.lane(LINE .. scope), 86400000)
  end
end

local function promised(scope)
  local stored = stands(K.promised(scope), PROMISED) and redis.pcall('GET', K.promised(scope))
  return amount(type(stored) == 'string' and stored or '')
end

-- Whether a call of this bound may be admitted: nil, or {why not, scope, window, when that ends (seconds, 0 for never), cap, whether
-- it is for want of room and not for those in line}. Of several the worst. is_woken: the scope in whose line it stood: whoever comes
-- out of one has waited, and waits for no other line, or two would turn each other's jobs away for ever.
local function books_room(b, windows, bound, is_woken)
  local worst
  for _, c in ipairs(caps_of(b.scopes)) do
    local firm, reserved = use_in(use_key(b, c.scope, c.window))
    if not is_woken then reserved = reserved + promised(c.scope) end
    local none = no_room_in(firm, reserved, c.cap, bound)
    local why = none or not is_woken and is_waited_for(c.scope) and 'held'
    local ends = windows[c.window] and windows[c.window][2] or 0
    -- Of several that are spent the one that is so for longest.
    if why and (not worst or WORSE[why] > WORSE[worst[1]]
        or why == 'spent' and worst[1] == 'spent' and worst[4] > 0 and (ends == 0 or ends > worst[4])) then
      worst = {why, c.scope, c.window, ends, c.cap, none ~= nil}
    end
  end
  return worst
end

local function alert_add(kind, c, firm, ...)
  redis.pcall('XADD', K.alerts(), 'MAXLEN', '~', KEPT_ALERTS, '*', 'kind', kind, 'scope', c.scope, 'window', c.window,
    'use', string.format('%.0f', firm), 'cap', string.format('%.0f', c.cap), 'at', now, ...)
end

-- The id of the newest, or "".
local function last_alert()
  local newest = redis.pcall('XREVRANGE', K.alerts(), '+', '-', 'COUNT', 1)[1]
  return newest and newest[1] or ''
end

-- Whether a call's window is another one than today's.
local function is_over(b, window)
  local start, open = start_of(b, window), windows_of()
  if not start then return false end
  if open then return open[window][1] ~= start end
  return now >= (tonumber(start) + LENGTH[window]) * 1000
end

-- Thresholds of caps are reached by what is settled and in doubt: each is said once in its window, the lowest first, as long as the
-- window is open: the cap in force is not one of the past.
local function books_alert(b)
  for _, c in ipairs(caps_of(b.scopes)) do
    local key = use_key(b, c.scope, c.window)
    local firm = use_in(key)
    -- Of another cap, other thresholds were told.
    local of, told = string.match(call('HGET', key, 'alerted') or '', '^(%d+) ([%d,]+)$')
    local before = tonumber(of) == c.cap and told or ''
    local after = before
    for soft in string.gmatch(c.soft, '%d+') do
      local known = string.find(',' .. before .. ',', ',' .. soft .. ',', 1, true)
      if not known and firm > 0 and firm * 100 >= c.cap * tonumber(soft) and not is_over(b, c.window) then
        after = after == '' and soft or after .. ',' .. soft
        alert_add('threshold', c, firm, 'percent', soft)
      end
    end
    if after ~= before then call('HSET', key, 'alerted', string.format('%.0f %s', c.cap, after)) end
  end
end

-- What a scope used in the last sixty minutes: of this hour all, of the one before as much as lies in them, as if it was even.
local function hourly(scope, windows)
  local start = tonumber(windows.hour[1])
  local this = use_in(K.use(scope, 'hour.' .. windows.hour[1]))
  local before = use_in(K.use(scope, string.format('hour.%.0f', start - 3600)))
  return this + before * math.max(0, start + 3600 - now / 1000) / 3600
end

-- When a cap is reached if its scope goes on as in the last hour (s), or nil: it uses nothing, or has reached it.
local function reached_at(firm, rate, cap)
  if rate <= 0 or firm >= cap then return nil end
  return now / 1000 + (cap - firm) / rate * 3600
end

-- An alert for each cap of a scope that will be reached before its window ends, once in the window; of one without an end, where that is
-- within a day. What is hardly used yet says nothing.
local function books_forecast(scope, windows)
  local rate
  for _, c in ipairs(caps_of({scope})) do
    local w = windows[c.window]
    local key = w and K.use(scope, c.window .. '.' .. w[1]) or K.used(scope)
    local firm = use_in(key)
    local told = call('HGET', key, 'forecast')
    if told ~= string.format('%.0f', c.cap) and firm * 100 >= c.cap * HARDLY then
      rate = rate or hourly(scope, windows)
      local at = reached_at(firm, rate, c.cap)
      if at and at < (w and w[2] or now / 1000 + 86400) then
        call('HSET', key, 'forecast', string.format('%.0f', c.cap))
        alert_add('rate', c, firm, 'rate', string.format('%.0f', rate), 'reached_at', string.format('%.0f', at))
      end
    end
  end
end

-- The same of some budgets. from: "0 0" to begin; answers the next, "0 0" at the end. Of hundreds that are small Redis answers a
-- scan whole: then they have their turn in the order of that answer. What is left of an answer and is no page of its own goes
-- with the page before: of many Redis answers a few more than it was asked for.
local function books_forecasts(from, most)
  local windows = windows_of()
  -- Nobody called since the hour began.
  if not windows then return '0 0' end
  local cursor, passed = string.match(from, '^(%d+) (%d+)$')
  local found = redis.pcall('HSCAN', K.budgets(), cursor or '0', 'COUNT', most)
  if found.err then return '0 0' end
  local first, scopes = tonumber(passed or 0), found[2]
  local left = #scopes / 2 - first
  local page = left < 2 * most and left or most
  for i = first + 1, first + page do pcall(books_forecast, scopes[2 * i - 1], windows) end
  if page < left then return string.format('%s %d', cursor or '0', first + page) end
  return found[1] .. ' 0'
end

-- A whole number, as text, and one more: exact also where the sum is beyond 2^53, as that of all time may be after $9 million.
local function plus(text, count)
  if count == 0 then return text end
  local high, low = tonumber(string.sub(text, 1, -10)) or 0, tonumber(string.sub(text, -9)) + count
  high = high + math.floor(low / 1e9)
  return high == 0 and string.format('%.0f', low) or string.format('%.0f%09.0f', high, low % 1e9)
end

-- Put what one call used to its series, in one span. counts: numbers, in the order of the usage's columns. most: series that it
-- holds; one that is in it stays, so that none of its sums ever goes down. folded: what it counts under where there is no room, if
-- there is room for that.
local function count_in(key, series, counts, most, seconds, folded)
  local stored = redis.pcall('HGET', key, series)
  if type(stored) == 'table' then
    call('DEL', key)
    stored = nil
  end
  local held = not stored and call('HLEN', key) or 0
  if held >= most then
    series = folded or 'other'
    stored = call('HGET', key, series)
    if folded and not stored and held >= MOST_SERIES + MOST_FOLDED then
      series = 'other'
      stored = call('HGET', key, series)
    end
  end
  local sums, i = {}, 0
  for text in string.gmatch(stored or '', '%S+') do
    i = i + 1
    sums[i] = string.match(text, '^%d+$') or '0'
  end
  for n, count in ipairs(counts) do sums[n] = plus(sums[n] or '0', count) end
  if call('HSET', key, series, table.concat(sums, ' ')) == 1 and seconds then call('EXPIRE', key, seconds) end
end

local function books_count(b, counts)
  -- Without its labels: tenant, agent, provider, model.
  local whose = string.match(b.series, '^[^,]*,[^,]*,[^,]*,[^,]*')
  -- What callers cannot make up.
  local folded = whose and string.match(whose, '^.*,') .. 'other'
  local part = counts[2] == 0 and 1 or 0.5
  count_in(K.usage_ever(), whose or b.series, counts, MOST_EVER * part)
  count_in(K.usage('hour.' .. b.starts[1]), b.series, counts, MOST_SERIES * part, ENTRIES, folded)
  count_in(K.usage('day.' .. b.starts[2]), b.series, counts, MOST_SERIES * part, TOTALS, folded)
end

-- A call is kept as "<stands> <bound> <amount> <when> <facts>". Until its outcome is known, its facts hold what it is booked under.
local function call_text(c)
  local facts = c.facts
  if c.books and (c.stands == 'open' or c.stands == 'doubt') then
    facts = string.sub(facts, 1, -2) .. (facts == '{}' and '' or ',') .. '"books":"' .. c.books .. '"}'
  end
  return c.stands .. ' ' .. c.bound .. ' ' .. c.amount .. ' ' .. c.at .. ' ' .. facts
end

local function call_of(text)
  local stands, nanos_bound, nanos, at, facts = string.match(text, '^(%a+) (%d+) (%d+) (%d+) (.*)$')
  if not stands then return nil end
  local books = string.match(facts, ',?"books":"([^"]*)"}$')
  if books then facts = string.gsub(facts, ',?"books":"[^"]*"}$', '}') end
  return {stands = stands, bound = nanos_bound, amount = nanos, at = at, facts = facts, books = books}
end

-- One entry of the ledger. nanos: what is settled by it. in_doubt: by how much that sum changes; both text. c.of: whose call it
-- is, where its job is not asked.
local function ledger_add(id, name, c, stands, nanos, in_doubt)
  local day = K.ledger(string.format('%.0f', math.floor(now / 86400000)))
  local tenant, agent, attempt = unpack(c.of or call('HMGET', K.job(id), 'tenant', 'agent', 'attempts'))
  local function add()
    return redis.pcall('XADD', day, '*', 'job', id, 'call', name, 'tenant', tenant or '', 'agent', agent or '', 'attempt',
      attempt or '', 'stands', stands, 'nanos', nanos, 'in_doubt', in_doubt, 'at', c.at, 'facts', c.facts)
  end
  if type(add()) == 'table' then
    call('DEL', day)
    add()
  end
  if call('TTL', day) < 0 then call('EXPIRE', day, 86400 + ENTRIES) end
end

-- Among the jobs of a day that cost most, if it is one. Something else in that place must not keep the job from ending.
local function list_cost(id)
  local tenant, agent, cost = get(id, 'tenant', 'agent', 'cost')
  if not (tenant and agent and amount(cost) > 0) then return end
  local key = K.dearest(string.format('%.0f', math.floor(now / 86400000)))
  if type(redis.pcall('ZADD', key, cost, tenant .. '|' .. agent .. '|' .. id)) == 'table' then return end
  call('ZREMRANGEBYRANK', key, 0, -DEAREST - 1)
  call('EXPIRE', key, DEAREST_KEPT)
end

-- Calls in doubt are listed until somebody knows better, or nobody can any more. They are kept whole, with whose they are: their jobs
-- may be gone before.
local function doubt_remove(entry)
  redis.pcall('ZREM', K.doubts(), entry)
  redis.pcall('HDEL', K.doubt_calls(), entry)
end

-- ancestors: for whom its job works.
local function doubt_add(id, name, c, ancestors)
  local tenant, agent, attempt = unpack(call('HMGET', K.job(id), 'tenant', 'agent', 'attempts'))
  local of = cjson.encode({tenant or '', agent or '', attempt or '', #ancestors > 0 and ancestors or nil})
  local facts = string.sub(c.facts, 1, -2) .. (c.facts == '{}' and '' or ',') .. '"of":' .. of .. '}'
  local entry = id .. ' ' .. name
  local text = call_text({stands = c.stands, bound = c.bound, amount = c.amount, at = c.at, facts = facts, books = c.books})
  local added = redis.pcall('ZADD', K.doubts(), c.at, entry)
  local kept = redis.pcall('HSET', K.doubt_calls(), entry, text)
  if type(added) == 'table' or type(kept) == 'table' then
    call('DEL', K.doubts(), K.doubt_calls())
    call('ZADD', K.doubts(), c.at, entry)
    call('HSET', K.doubt_calls(), entry, text)
  end
end

-- Those that are listed no longer, for their age.
local function doubts_sweep(most)
  local old = redis.pcall('ZRANGEBYSCORE', K.doubts(), '-inf', now - ENTRIES * 1000, 'LIMIT', 0, most)
  for _, entry in ipairs(old.err and {} or old) do doubt_remove(entry) end
end

-- A call in doubt as it is listed, with c.of: tenant, agent, attempt, and for whom its job works. Nil where it is not, or makes no
-- sense.
local function doubt_read(entry)
  local text = redis.pcall('HGET', K.doubt_calls(), entry)
  local c = type(text) == 'string' and call_of(text)
  local of = c and c.stands == 'doubt' and string.match(c.facts, ',?"of":(%b[])}$')
  if not of then return nil end
  c.facts = string.gsub(c.facts, ',?"of":%b[]}$', '}')
  local readable, found = pcall(cjson.decode, of)
  if not readable then return nil end
  c.of = found
  return c
end

-- What somebody said of a call that was in doubt, "settled NANOS BOUND" or "released 0 BOUND", or nil: its outcome stays so, whatever
-- comes after that.
local function doubt_resolved(id, name)
  local said = redis.pcall('GET', K.resolved(id, name))
  return type(said) == 'string' and said or nil
end

local function doubt_resolve(id, name, said)
  call('SET', K.resolved(id, name), said, 'EX', ENTRIES)
end

-- In the sums of those for whom a job works. Answers those of them that are known.
local function shift_above(ancestors, was, back, is, nanos)
  local payers = {}
  for _, ancestor in ipairs(ancestors) do
    local above = ancestor[1]
    if call('EXISTS', K.job(above)) == 1 then
      payers[#payers + 1] = above
      call('HINCRBY', K.job(above), 'revision', 1)
      if back then call('HINCRBY', K.job(above), 'below_' .. was, back) end
      if is then call('HINCRBY', K.job(above), 'below_' .. is, nanos) end
    end
  end
  return payers
end

-- Room that is found for those who wait is kept for them for a moment.
local function promise(scope, nanos)
  if type(redis.pcall('INCRBY', K.promised(scope), nanos)) == 'table' then call('SET', K.promised(scope), nanos) end
  call('PEXPIRE', K.promised(scope), PROMISED)
end

-- A job out of the line of a scope is about to ask: room is no longer kept for it.
local function keep_promise(scope, nanos)
  if promised(scope) > 0 then redis.pcall('DECRBY', K.promised(scope), string.format('%.0f', math.min(promised(scope), nanos))) end
end

-- The same with what is used of each, and those of windows that nobody asked for yet: nothing is used of them.
local function caps_used(scopes)
  local windows, known, new = windows_of(), {}, {}
  for _, c in ipairs(caps_of(scopes)) do
    if c.window ~= 'ever' and not windows then new[#new + 1] = c
    else
      c.ends = c.window ~= 'ever' and windows[c.window][2] or nil
      c.firm, c.reserved = use_in(c.ends and K.use(c.scope, c.window .. '.' .. windows[c.window][1]) or K.used(c.scope))
      known[#known + 1] = c
    end
  end
  return known, new
end

-- What the tightest cap of these scopes leaves, as text, "" where there is none, and when its window ends (ms; 0 where it does not).
local function books_left(scopes)
  local least, ends
  local function look(cap, used, till)
    local left = math.max(0, cap - used)
    if not least or left < least then least, ends = left, (till or 0) * 1000 end
  end
  local known, new = caps_used(scopes)
  for _, c in ipairs(known) do look(c.cap, c.firm + c.reserved, c.ends) end
  for _, c in ipairs(new) do look(c.cap, 0) end
  return least and string.format('%.0f', least) or '', ends or 0
end

-- The caps of a scope, with what is used of each. Of a job: what those that work for it wait for, as `id` has it.
local function caps_in(scope, id)
  local above = string.match(scope, '^job%%3A(.+)$')
  if not above then return (caps_used({scope})) end
  local _, stored = pcall(cjson.decode, call('HGET', K.job(id), 'ancestors') or '[]')
  for _, ancestor in ipairs(type(stored) == 'table' and stored or {}) do
    if ancestor[1] == above and tonumber(ancestor[2]) then
      local sums = call('HMGET', K.job(above), 'cost', 'in_doubt', 'below_cost', 'below_in_doubt', 'reserved', 'below_reserved')
      local firm = amount(sums[1]) + amount(sums[2]) + amount(sums[3]) + amount(sums[4])
      return {{cap = tonumber(ancestor[2]), firm = firm, reserved = amount(sums[5]) + amount(sums[6])}}
    end
  end
  return {}
end

-- Jobs in the line of a scope go on, in their order, as far as there is room: what only others hold is waited for, and what is
-- spent is looked past. most: how many are looked at.
local function wake_scope(scope, most)
  local line, kept = K.lane_line(LINE .. scope), promised(scope)
  -- Whoever asks first in a new window says which it is: until then nobody knows what is used of it.
  local of_job = string.match(scope, '^job%%3A')
  local blind, caps = not of_job and not windows_of(), not of_job and caps_in(scope)
  -- From where the last look ended: those at the head may be too dear for what is left.
  local from = redis.pcall('HGET', K.lane(LINE .. scope), 'looked')
  from = type(from) == 'string' and tonumber(from) and '(' .. from or '-inf'
  local page = call('ZRANGEBYSCORE', line, from, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
  local looked = #page == 2 * most and page[#page] or ''
  for i = 1, #page, 2 do
    local id = page[i]
    local r = read(id)
    if not (r and r.place == 'parked') then
      if not (r and r.newer) then
        call('ZREM', line, id)
        if not r then set_aside(id, 'lane') end
      end
    else
      local bound, impatient = unpack(call('HMGET', K.job(id), 'lane_input', 'impatient'))
      local why
      bound = amount(bound)
      for _, c in ipairs(caps or caps_in(scope, id)) do
        local no = no_room_in(c.firm, c.reserved + kept, c.cap, bound)
        if no and (not why or WORSE[no] > WORSE[why]) then why = no end
      end
      if why == 'held' then
        wait_for(scope)
        return
      end
      -- What never fits goes on to hear so, and who would not wait for the next window; what a job may cost does not get better.
      if why ~= 'spent' or of_job or impatient then
        local done = try(id, 'lane', function()
          leave_place(r)
          call('HSET', K.job(id), 'woken', string.format('%s %.0f %.0f 0', LINE .. scope, now, bound))
          to_ready(r)
        end)
        if not done then call('ZREM', line, id)
        elseif not why then
          promise(scope, string.format('%.0f', bound))
          kept = kept + bound
        end
        if done and blind then return end
      end
    end
  end
  if from ~= '-inf' or looked ~= '' then
    if type(redis.pcall('HSET', K.lane(LINE .. scope), 'looked', looked)) == 'number' then
      call('PEXPIRE', K.lane(LINE .. scope), 86400000)
    end
  end
end

-- What jobs of an agent cost, those that work for them included: a mean that forgets what is long ago.
local function learn_cost(r)
  local cost, below, own_model = get(r.id, 'cost', 'below_cost', 'own_model')
  if own_model then return end
  local known = redis.pcall('HGET', K.mean_costs(), r.agent)
  if type(known) == 'table' then call('DEL', K.mean_costs()) end
  local count, mean = string.match(type(known) == 'string' and known or '', '^(%d+) (%d+)$')
  count = math.min(RECENT, (tonumber(count or '') or 0) + 1)
  mean = tonumber(mean or '') or 0
  mean = mean + ((tonumber(cost or '') or 0) + (tonumber(below or '') or 0) - mean) / count
  call('HSET', K.mean_costs(), r.agent, string.format('%d %.0f', count, mean))
end

-- Money has come back: whoever waits for it goes on. b: what the call was booked under, or nil. above: jobs that it was made for.
local function books_wake(b, above)
  local scopes = {}
  for _, scope in ipairs(b and b.scopes or {}) do scopes[#scopes + 1] = scope end
  for _, id in ipairs(above) do scopes[#scopes + 1] = 'job%3A' .. id end
  local lines = {}
  for i, scope in ipairs(scopes) do lines[i] = K.lane_line(LINE .. scope) end
  if #lines == 0 or call('EXISTS', unpack(lines)) == 0 then return end
  for i, scope in ipairs(scopes) do
    if call('EXISTS', lines[i]) == 1 then wake_scope(scope, 20) end
  end
end

return {
  of = books_of,
  text = books_text,
  read = books_read,
  shift = books_shift,
  shift_above = shift_above,
  alert = books_alert,
  forecasts = books_forecasts,
  last_alert = last_alert,
  count = books_count,
  wake = books_wake,
  room = books_room,
  reserve = books_reserve,
  doubt = doubt_add,
  no_doubt = doubt_remove,
  sweep_doubts = doubts_sweep,
  doubt_read = doubt_read,
  resolved = doubt_resolved,
  resolve = doubt_resolve,
  enter = ledger_add,
  list = list_cost,
  windows = windows_of,
  left = books_left,
  learn = learn_cost,
  no_room_in = no_room_in,
  is_waited_for = is_waited_for,
  wait_for = wait_for,
  keep_promise = keep_promise,
  wake_scope = wake_scope,
  LINE = LINE,
  KEPT_CHANGES = KEPT_CHANGES,
  call_text = call_text,
  call_of = call_of,
}
