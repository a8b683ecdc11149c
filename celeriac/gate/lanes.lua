-- What the fleet knows of a lane, which is one provider and one of its models: whether it is to be left alone, and until when.
-- Shared with the scripts that admit and settle calls. A lane about which nothing sensible is stored is open: to leave it
-- alone is a courtesy, and no promise hangs on it. What is stored about it is never believed beyond its bounds.
local SLOT, SLOTS = 10000, 6 -- failures are counted over a minute, in slots of ten seconds
local LEAST, RATIO = 10, 0.5 -- failures in it that say something, and the share of all calls that is too much
local OPEN, LONGEST_OPEN = 10000, 300000 -- ms that a breaker stays open: doubles from the first to the last
local REFUSED = 60000 -- ms for which a lane without money, or that does not accept our key, is not asked
local MOST_OVERRUN = 100000 -- thousandths of its bound that a call costs: beyond, the usage was not believed
local MOST_NANOS = 9e15
local PROBED = 1000 -- ms after which to look again at a lane that somebody is trying out
local LANE_TTL = 86400000
local CHANGES = 1000    -- of breakers, that are kept to be looked at
-- A bucket holds what may still be asked for: of what the provider says that it allows ("requests", "tokens", or tokens of
-- "input" and "output" apart), of what the operator allows ("own_..."), and, after a time in which the lane was left alone,
-- of the calls that it is tried with ("ramp"): half of what it answered before, one a second at least, and twice as many every two
-- seconds. Fewer would never be many again where it asks for a moment after every hundredth call.
local BUCKETS = {'requests', 'tokens', 'input', 'output', 'own_requests', 'own_tokens', 'ramp'}
local OWN = {own_requests = true, own_tokens = true}
local MINUTE = 60000
local BELIEVED = 600000 -- ms for which a limit counts that no answer has named again
local DOUBLES, RAMPS = 2000, 20000 -- ms in which the ramp doubles, and after which there is none
local EXPECTED = 0.5    -- of the tokens that a call may use at most, what one uses of a lane that we know nothing of
local NEWS = 0.1        -- how much one call changes that
local PROMISE = 5000    -- ms, once or twice over, for which those count who were woken for it
local LONGEST = 3600000 -- ms that anything of a lane may take: what lies further ahead is nonsense

-- Fields of a lane; none where it is no hash.
local function of_lane(lane, ...)
  local values = redis.pcall('HMGET', K.lane(lane), ...)
  if not values.err then return unpack(values) end
end

-- What is stored, as far as it makes sense.
local function number(text)
  local value = tonumber(text or '')
  return value and value > -1e15 and value < 1e15 and value or 0
end

local function lane_set(lane, ...)
  local set = redis.pcall('HSET', K.lane(lane), ...)
  if type(set) == 'table' then
    redis.call('DEL', K.lane(lane))
    redis.call('HSET', K.lane(lane), ...)
  end
  redis.call('PEXPIRE', K.lane(lane), LANE_TTL)
end

-- By how much a call of this lane cost more than its bound, in thousandths of it, and whether the lane is closed for that.
local function lane_overran(lane)
  local stored = redis.pcall('HGET', K.overruns(), lane)
  local ratio, state = string.match(type(stored) == 'string' and stored or '', '^(%d+) (%a+)$')
  return math.max(1000, math.min(MOST_OVERRUN, number(ratio))), state == 'closed'
end

-- The bound of a call, raised by what calls of its lane cost more. Text: Lua's numbers lose digits, and lose none up to here.
local function lane_bound(lane, bound)
  local ratio = lane_overran(lane)
  if ratio == 1000 then return bound end
  return string.format('%.0f', math.min(MOST_NANOS, math.ceil(tonumber(bound) / 1000 * ratio)))
end

-- A call cost more than its bound, by these thousandths of what was asked for it. strict: nobody asks the lane again until an
-- operator has opened it.
local function lane_overrun(lane, ratio, strict)
  local was, closed = lane_overran(lane)
  local set = {math.max(was, math.min(MOST_OVERRUN, ratio)), (closed or strict) and 'closed' or 'raised'}
  if type(redis.pcall('HSET', K.overruns(), lane, table.concat(set, ' '))) == 'table' then
    redis.call('DEL', K.overruns())
    redis.call('HSET', K.overruns(), lane, table.concat(set, ' '))
  end
  return strict and not closed
end

-- Answers for how many ms the lane is to be left alone, and why; nil where it may be asked.
local function lane_closed(lane)
  local _, overran = lane_overran(lane)
  if overran then return REFUSED, 'overrun' end
  local shut, span, why, opened, probe_until, probe_ms =
    of_lane(lane, 'shut', 'span', 'why', 'opened', 'probe_until', 'probe_ms')
  shut, span = number(shut), math.min(LONGEST, number(span))
  if shut > now then
    -- The clock went back: no lane is left alone for longer than it was to be.
    if shut - now > span then
      shut = now + span
      lane_set(lane, 'shut', shut)
    end
    if shut > now then return shut - now, why or '' end
  end
  -- Half open: one call in the whole fleet tries it out. A probe is a lease: whoever made it may be dead.
  probe_until, probe_ms = number(opened) > 0 and number(probe_until) or 0, math.min(LONGEST, number(probe_ms))
  if probe_until - now > probe_ms then
    probe_until = now + probe_ms
    lane_set(lane, 'probe_until', probe_until)
  end
  if probe_until > now then return math.min(PROBED, probe_until - now), 'probed' end
end

-- Whether the next call is to try it out.
local function lane_is_tried(lane) return number(of_lane(lane, 'opened')) > 0 end

-- Calls that a ramp of one a second has let through since it began.
local function ramped(ms) return DOUBLES / 1000 / math.log(2) * (2 ^ (ms / DOUBLES) - 1) end

-- The buckets that there are, as they are now. Each: level, most that it holds, rate (what flows in, a ms). Answers them, the
-- time for which that holds, and whether they are from a time that has not come yet: the clock went back.
local function lane_buckets(lane)
  local found, ahead, stored = {}, false, {of_lane(lane, 'shut', unpack(BUCKETS))}
  local open = math.max(now, number(stored[1])) -- while the lane is left alone, they are as they will be
  for i, name in ipairs(BUCKETS) do
    local most, period, level, at, seen = string.match(stored[i + 1] or '', '^(%d+) (%d+) (%-?[%d.]+) (%d+) (%d+)$')
    most, period, at, seen = number(most), number(period), number(at), math.min(number(seen), open)
    level = math.max(-most, number(level))
    if at > open then ahead, at = true, open end
    if name == 'ramp' and most > 0 and open - seen < RAMPS then
      -- Its period is how many calls a second it began with.
      local rate = period * 2 ^ ((open - seen) / DOUBLES) / 1000
      local flown = period * (ramped(open - seen) - ramped(math.max(0, at - seen)))
      most = math.max(1, 2000 * rate)
      found.ramp = {most = most, period = period, rate = rate, seen = seen, level = math.min(most, level + flown)}
    elseif name ~= 'ramp' and most > 0 and period > 0 and (now - seen < BELIEVED or OWN[name]) then
      local rate = most / period
      found[name] =
        {most = most, period = period, rate = rate, seen = seen, level = math.min(most, level + (open - at) * rate)}
    end
  end
  return found, open, ahead
end

-- fields: others of the lane, to be set as well.
local function lane_put(lane, buckets, at, fields)
  fields = fields or {}
  for name, b in pairs(buckets) do
    fields[#fields + 1] = name
    fields[#fields + 1] = string.format('%d %d %.3f %d %d', b.most, b.period, b.level, at, b.seen)
  end
  if #fields > 0 then lane_set(lane, unpack(fields)) end
end

-- The share of its tokens that a call uses, as it was learned; nil where nothing sensible is stored.
local function share_of(text)
  local share = tonumber(text or '')
  return share and share >= 0 and share <= 1 and share or nil
end

-- The tokens that calls with at most so many are expected to use: what they used so far says it. Of all that a call might
-- use, a lane would run at a quarter of its rate.
local function lane_need(lane, input, output)
  local of_input, of_output = of_lane(lane, 'of_input', 'of_output')
  local need = {requests = 1, own_requests = 1, ramp = 1}
  need.input = math.ceil(input * (share_of(of_input) or EXPECTED))
  need.output = math.ceil(output * (share_of(of_output) or EXPECTED))
  need.tokens = need.input + need.output
  need.own_tokens = need.tokens
  return need
end

-- What the operator allows a minute; 0 for anything.
local function lane_cap(lane, name, most)
  local is = string.match(of_lane(lane, name) or '', '^(%d+) ')
  if most > 0 and number(is) ~= most then
    local buckets, at = lane_buckets(lane)
    -- Set anew, it holds what it held: while two files are in use, it would be full at each call.
    local level = buckets[name] and math.min(most, buckets[name].level) or most
    lane_put(lane, {[name] = {most = most, period = MINUTE, level = level, seen = now}}, at)
  elseif most == 0 and is then redis.call('HDEL', K.lane(lane), name) end
end

-- Take out of every bucket what a call needs. ahead: what those need who come first, or nil. What needs more than a bucket holds
-- goes when it is full. Answers for how many ms there is too little, and takes nothing then; nil where there is enough.
local function lane_take(lane, need, ahead)
  local buckets, at, from_ahead = lane_buckets(lane)
  local wait = 0
  for name, b in pairs(buckets) do
    local wanted = ahead and need[name] + ahead[name] or math.min(b.most, need[name])
    if b.level < wanted then wait = math.max(wait, math.ceil((wanted - b.level) / b.rate)) end
  end
  wait = math.min(LONGEST, wait)
  if wait > 0 then
    if from_ahead then lane_put(lane, buckets, at) end
    return wait
  end
  for name, b in pairs(buckets) do b.level = math.max(-b.most, b.level - need[name]) end
  lane_put(lane, buckets, at)
end

-- What those need who were woken in the last moments and have not called yet. Whoever has no slot by then is not waited for.
local function lane_promised(lane)
  local sum, current = {requests = 0, input = 0, output = 0}, math.floor(now / PROMISE)
  for i, text in ipairs({of_lane(lane, 'promised0', 'promised1')}) do
    local slot, requests, input, output = string.match(text or '', '^(%d+) (%d+) (%d+) (%d+)$')
    if number(slot) == current or number(slot) == current - 1 then
      sum.requests, sum.input, sum.output = sum.requests + number(requests), sum.input + number(input), sum.output + number(output)
    end
  end
  sum.tokens, sum.own_requests, sum.ramp = sum.input + sum.output, sum.requests, sum.requests
  sum.own_tokens = sum.tokens
  return sum
end

-- One more of them, woken at that time, or one less: it has called, or waits again.
local function lane_promise(lane, at, need, by)
  local mine = math.floor(at / PROMISE)
  local field = 'promised' .. mine % 2
  local slot, requests, input, output = string.match(of_lane(lane, field) or '', '^(%d+) (%d+) (%d+) (%d+)$')
  if number(slot) ~= mine then
    if by < 0 then return end
    requests, input, output = 0, 0, 0
  end
  lane_set(lane, field, string.format('%.0f %.0f %.0f %.0f', mine, math.max(0, number(requests) + by),
    math.max(0, number(input) + by * need.input), math.max(0, number(output) + by * need.output)))
end

-- Whether its rates let no call through that needs so much, beside those that were woken.
local function lane_short(lane, need)
  local buckets, at, from_ahead = lane_buckets(lane)
  if from_ahead then lane_put(lane, buckets, at) end
  local promised = lane_promised(lane)
  for name, b in pairs(buckets) do
    if b.level < math.min(b.most, promised[name] + need[name]) then return true end
  end
end

-- What those need who go before whoever comes: who were woken, and who wait in the line, as far as one look tells: the first of
-- them, and the others like it. Nil where there is nobody.
local function lane_ahead(lane)
  local waiting, ahead = redis.pcall('ZCARD', K.lane_line(lane)), lane_promised(lane)
  if type(waiting) ~= 'number' then waiting = 0 end
  if waiting + ahead.requests == 0 then return nil end
  if waiting > 0 then
    local first = redis.call('ZRANGE', K.lane_line(lane), 0, 0)[1]
    local asks = redis.pcall('HMGET', K.job(first), 'lane_input', 'lane_output')
    local need = lane_need(lane, number(asks[1]), number(asks[2]))
    for name, count in pairs(need) do ahead[name] = ahead[name] + count * waiting end
  end
  return ahead
end

-- What an answer says of the rates. h.took, h.used, h.most: input and output tokens that the call was expected to use, that
-- it used, and that it might have used; null where nobody knows. h.limits: {name, most, left, ms}.
local function lane_learn(h)
  local buckets, at = lane_buckets(h.lane)
  local fields = {}
  if h.used ~= cjson.null then
    local more = {input = h.took[1] - h.used[1], output = h.took[2] - h.used[2]}
    more.tokens = more.input + more.output
    more.own_tokens = more.tokens
    for name, b in pairs(buckets) do b.level = math.max(-b.most, math.min(b.most, b.level + (more[name] or 0))) end
    local shares = {of_lane(h.lane, 'of_input', 'of_output')}
    for i, name in ipairs({'of_input', 'of_output'}) do
      if h.most[i] > 0 then
        local share = math.min(1, h.used[i] / h.most[i])
        local was = share_of(shares[i]) or share
        fields[#fields + 1] = name
        fields[#fields + 1] = string.format('%.4f', was + NEWS * (share - was))
      end
    end
  end
  for _, said in ipairs(h.limits) do
    local name, most, left, ms = unpack(said)
    local level = buckets[name] and buckets[name].level or left
    buckets[name] = {most = most, period = ms, level = math.min(level, left), seen = now}
  end
  lane_put(h.lane, buckets, at, fields)
end

-- Calls a second that were answered, in the busiest ten seconds of the last minute.
local function lane_pace(lane)
  local current, most = math.floor(now / SLOT), 0
  for slot = 0, SLOTS - 1 do
    local of, all, bad = string.match(of_lane(lane, 'slot' .. slot) or '', '^(%d+) (%d+) (%d+)$')
    if number(of) <= current and number(of) > current - SLOTS then most = math.max(most, number(all) - number(bad)) end
  end
  return most * 1000 / SLOT
end

-- From then on the lane is asked again: with empty buckets, by a few at first.
local function lane_ramp(lane, at)
  local buckets = lane_buckets(lane)
  for _, b in pairs(buckets) do
    -- What fills in a day would not be back for hours.
    if b.period <= MINUTE then b.level = math.min(0, b.level) end
  end
  local first = math.max(1, math.floor(lane_pace(lane) / 2))
  buckets.ramp = {most = first, period = first, level = 1, seen = at}
  lane_put(lane, buckets, at)
end

-- Nobody tries the lane out any more.
local function lane_unprobe(lane)
  local probe = of_lane(lane, 'probe')
  if probe then redis.pcall('HDEL', K.probes(), probe) end
  redis.call('HDEL', K.lane(lane), 'probe', 'probe_until', 'probe_ms')
end

local function lane_tell(lane, state, why, ms)
  redis.pcall('XADD', K.lane_changes(), 'MAXLEN', '~', CHANGES, '*', 'lane', lane, 'state', state, 'why', why, 'ms', ms)
end

-- A call is about to be made. lease: ms that it may take. Answers 1 where it tries the lane out for the whole fleet, else 0.
local function lane_ask(lane, name, lease)
  if not lane_is_tried(lane) then return 0 end
  lane_unprobe(lane)
  lane_set(lane, 'probe', name, 'probe_until', now + lease, 'probe_ms', lease)
  -- Whoever finds out that nothing will be heard of it knows the call only.
  if type(redis.pcall('HSET', K.probes(), name, lane)) == 'table' then
    redis.call('DEL', K.probes())
    redis.call('HSET', K.probes(), name, lane)
  end
  lane_tell(lane, 'half_open', '', 0)
  return 1
end

local function lane_shut(lane, ms, why, ...) lane_set(lane, 'shut', now + ms, 'span', ms, 'why', why, ...) end

local function lane_open(lane, opened, why, least)
  local ms = math.max(least, math.min(LONGEST_OPEN, OPEN * 2 ^ (opened - 1)))
  lane_unprobe(lane)
  redis.call('HDEL', K.lane(lane), 'by_hand')
  lane_shut(lane, ms, why, 'opened', opened)
  lane_tell(lane, 'open', why, ms)
  return 'opened ' .. ms .. ' ' .. why
end

-- One more call of the last minute. Answers whether too many have failed.
local function lane_count(lane, failed)
  local current = math.floor(now / SLOT)
  local calls, failures = 0, 0
  for slot = 0, SLOTS - 1 do
    local of, all, bad = string.match(of_lane(lane, 'slot' .. slot) or '', '^(%d+) (%d+) (%d+)$')
    local mine = slot == current % SLOTS
    if number(of) > current or number(of) <= current - SLOTS or mine and number(of) ~= current then all, bad = 0, 0 end
    if mine then
      all, bad = all + 1, bad + (failed and 1 or 0)
      lane_set(lane, 'slot' .. slot, string.format('%d %d %d', current, all, bad))
    end
    calls, failures = calls + all, failures + bad
  end
  return failed and failures >= LEAST and failures >= RATIO * calls
end

-- The lane works again. What calls say that were sent before is old news from then on.
local function lane_close(lane)
  lane_unprobe(lane)
  redis.call('HDEL', K.lane(lane), 'opened', 'shut', 'span', 'why')
  for slot = 0, SLOTS - 1 do redis.call('HDEL', K.lane(lane), 'slot' .. slot) end
  lane_set(lane, 'closed', now)
  lane_ramp(lane, now)
  lane_tell(lane, 'closed', '', 0)
  return 'closed'
end

-- It asked for time.
local function lane_cool(lane, ms, why)
  if now + ms <= number(of_lane(lane, 'shut')) then return end
  lane_shut(lane, ms, why)
  lane_ramp(lane, now + ms)
end

local lane_hear
-- A block: a script may have 200 local names.
do
  -- How calls end, by the hour, to be looked at: "answered" or a code, and of those that were answered "took.N", at most 1.25^N ms.
  -- Kept for two days.
  local function lane_note(h)
    local how = h.why ~= '' and h.why or h.says == 'answered' and h.says
    if not how then return end
    local key = K.lane_calls(h.lane, string.format('%.0f', math.floor(now / 3600000)))
    if type(redis.pcall('HINCRBY', key, how, 1)) == 'table' then
      redis.call('DEL', key)
      redis.call('HINCRBY', key, how, 1)
    end
    if how == 'answered' then
      local class = math.ceil(math.log(math.max(1, math.min(LONGEST, h.ms))) / math.log(1.25))
      redis.call('HINCRBY', key, string.format('took.%d', class), 1)
    end
    redis.call('PEXPIRE', key, 172800000)
  end

  -- What a call says of its lane. h: null for nothing, or lane, says, why, wait (ms for which it asks to be left alone), took, used,
  -- most, limits, ms that it took. says: "answered"; "alive" (the lane works, the request was at fault); "failed"; "busy" (nothing else is wrong
  -- with it); "refused" (no money, or no key of ours); "nothing". at: when the call was admitted.
  -- Answers how that changed the breaker: "opened <ms> <why>", "closed" or "".
  function lane_hear(h, name, at)
    if h == cjson.null then return '' end
    lane_learn(h)
    lane_note(h)
    local lane, says = h.lane, h.says
    if h.over and h.over > 0 and lane_overrun(lane, h.over, h.strict) then
      redis.call('HDEL', K.lane(lane), 'by_hand')
      lane_tell(lane, 'open', 'overrun', 0)
      return 'opened 0 overrun'
    end
    local opened, probe, closed, by_hand = of_lane(lane, 'opened', 'probe', 'closed', 'by_hand')
    opened = number(opened)
    local probing, changed = opened > 0 and probe == name, ''
    if says == 'refused' then
      return (opened == 0 or probing) and lane_open(lane, opened + 1, h.why, REFUSED) or ''
    end
    if probing then
      if says == 'failed' then return lane_open(lane, opened + 1, h.why, h.wait) end
      if says == 'nothing' then lane_unprobe(lane); return '' end
      changed = lane_close(lane)
    elseif (says == 'failed' or says == 'answered') and opened == 0 and number(at) >= number(closed) then
      -- What was sent before the breaker opened is old news.
      if lane_count(lane, says == 'failed') then return lane_open(lane, 1, h.why, h.wait) end
    end
    if h.wait > 0 then lane_cool(lane, h.wait, h.why) end
    -- An operator opened it since: whoever hears that first says so.
    if by_hand and changed == '' then
      redis.call('HDEL', K.lane(lane), 'by_hand')
      return 'closed'
    end
    return changed
  end
end
