-- Shared, after lines.lua: how a run lets go, how calls are booked, how a job ends.

-- The run lets go: its slot is free, and its fence is void.
local function let_go(r)
  call('SREM', K.stops(r.worker), r.id)
  if call('SREM', K.held(r.worker), r.id) == 1 and call('EXISTS', K.worker(r.worker)) == 1 then
    change_worker(r.worker, function()
      call('HINCRBY', K.worker(r.worker), 'running', -1)
      call('HINCRBY', K.worker(r.worker), 'writes', 1)
      if level(r) and call('HINCRBY', K.worker(r.worker), 'suspects', -1) == 0 then
        call('HDEL', K.worker(r.worker), 'company')
      end
    end)
  end
  call('HDEL', K.job(r.id), 'worker', 'nonce', 'unknown_since')
end

-- The same request to let go gets the same answer.
local function released(r, op, answer)
  call('HSET', K.job(r.id), 'released', op .. ' ' .. r.worker .. ' ' .. r.nonce, 'release_answer', answer)
end

local function release(r, op, answer)
  let_go(r)
  released(r, op, answer)
end

-- "mine", "again" (this very release was done, its answer was lost) or "fenced".
local function fence(r, op, worker, nonce)
  if not r then return 'fenced' end
  if r.place == 'running' and (UNFENCED or (r.worker == worker and r.nonce == nonce)) then return 'mine' end
  if r.released == op .. ' ' .. worker .. ' ' .. nonce then return 'again' end
  return 'fenced'
end

-- Amounts stay text: Lua's numbers lose digits.
local function call_read(id, name)
  local text = call('HGET', K.calls(id), name)
  return text and books.call_of(text) or nil
end

local SUM = {open = 'reserved', doubt = 'in_doubt', settled = 'cost'}

-- For whom the job works: who asked for it, who asked for that one, and so on. Each: {id, what it may cost, "" for anything}.
-- Answers them, and whether they make sense: where they do not, nobody knows whose cap a call would cross.
local function ancestors_of(id)
  local stored = get(id, 'ancestors')
  if not stored then return {}, true end
  local readable, found = pcall(cjson.decode, stored)
  for _, ancestor in ipairs(readable and type(found) == 'table' and found or {false}) do
    if type(ancestor) ~= 'table' or type(ancestor[1]) ~= 'string' or type(ancestor[2]) ~= 'string' then return {}, false end
  end
  return found, true
end

-- What became of a call, in the sums of its scopes, in the ledger and among the doubts. counts: for the usage, or nil.
local function books_move(id, name, c, was, back, stands, nanos, counts)
  local b, entry = books.read(c.books), id .. ' ' .. name
  if b then
    books.shift(b, SUM[was], back, SUM[stands], nanos)
    -- What is said of it must not keep the money from being booked.
    if stands ~= 'released' then pcall(books.alert, b) end
    if counts then books.count(b, counts) end
  end
  if was == 'doubt' then books.no_doubt(entry) end
  if stands == 'doubt' then books.doubt(id, name, c, (ancestors_of(id))) end
  if was == 'doubt' or stands ~= 'released' then
    local change = stands == 'doubt' and nanos or was == 'doubt' and back or '0'
    books.enter(id, name, c, stands, stands == 'settled' and nanos or '0', change)
  end
  return b
end

-- From one sum of the job to another, and with it those of all for whom it works, and of its scopes. What may not be: out of
-- "settled", and into anything from "released". c.of: where the job's record is gone, as the list of doubts has it. counts: for
-- the usage, or nil.
local function call_move(id, name, c, stands, amount, counts)
  local before = c.stands
  local was = SUM[before]
  -- Redis does not take "-0" for a number: a model may be free.
  local back = was and c.amount ~= '0' and '-' .. c.amount
  local payers = books.shift_above(c.of and (c.of[4] or {}) or (ancestors_of(id)), was, back, SUM[stands], amount)
  c.stands, c.amount = stands, amount
  if not c.of then
    call('HINCRBY', K.job(id), 'revision', 1)
    if back then call('HINCRBY', K.job(id), was, back) end
    if SUM[stands] then call('HINCRBY', K.job(id), SUM[stands], amount) end
    call('HSET', K.calls(id), name, books.call_text(c))
  end
  if stands == 'open' then return end
  local b = books_move(id, name, c, before, back, stands, amount, counts)
  if back and stands ~= 'doubt' then pcall(books.wake, b, payers) end
end

-- The money half of a settlement: by the call's name, once, whoever asks. A call that the store does not know (it lost its
-- history) is booked from the worker's own copy, once the worker has made its job known again; until then it is "lost", as one
-- of a job whose record has aged out, unless it is listed as in doubt. s: call, stands, bound, nanos, facts, books (what it is booked under; "" for
-- nothing), counts (for the usage). Answers what was done, and when the call was admitted; of one that somebody resolved by hand
-- before its outcome came "resolved " and what was said of it.
local function book(id, s)
  local known_job = call('EXISTS', K.job(id)) == 1
  local c
  if known_job then c = call_read(id, s.call) else c = books.doubt_read(id .. ' ' .. s.call) end
  if not c or c.stands == 'settled' or c.stands == 'released' then
    local said = books.resolved(id, s.call)
    if said then return 'resolved ' .. said end
  end
  if not (known_job or c) then return 'lost' end
  if c and (c.stands == 'settled' or c.stands == 'released' or c.stands == s.stands) then return 'again' end
  local known, counts = c ~= nil, s.counts ~= cjson.null and s.counts or nil
  -- It was counted when it came to be in doubt.
  if counts and c and c.stands == 'doubt' then counts[1], counts[2] = 0, 0 end
  c = c or {stands = 'unknown', bound = s.bound, amount = '0', at = tostring(now), facts = s.facts, books = s.books}
  -- Its answer came after all, or the store had lost it.
  local late = s.stands == 'settled' and c.stands ~= 'open'
  c.facts = late and string.gsub(s.facts, '}$', (s.facts == '{}' and '' or ',') .. '"late":true}') or s.facts
  call_move(id, s.call, c, s.stands, s.stands == 'settled' and s.nanos or s.stands == 'doubt' and c.bound or '0', counts)
  if late and get(id, 'place') == 'ended' then books.list(id) end
  if not known then
    local ttl = call('PTTL', K.job(id))
    if ttl > 0 then call('PEXPIRE', K.calls(id), ttl) end
  end
  return known and 'booked' or 'unknown', c.at
end

-- Nothing will be heard of this call: if it tried a lane out, another one may.
local function stop_probing(name)
  local lane = redis.pcall('HGET', K.probes(), name)
  if type(lane) ~= 'string' then return end
  redis.pcall('HDEL', K.probes(), name)
  if redis.pcall('HGET', K.lane(lane), 'probe') == name then
    call('HDEL', K.lane(lane), 'probe', 'probe_until', 'probe_ms')
  end
end

local UNANSWERED = {1, 1} -- for the usage: a call, and no answer

-- Calls without an outcome may have been sent: they are in doubt at their full bound.
local function doubt_open_calls(id)
  local all = call('HGETALL', K.calls(id))
  for i = 1, #all, 2 do
    if string.sub(all[i + 1], 1, 5) == 'open ' then
      local c = call_read(id, all[i])
      call_move(id, all[i], c, 'doubt', c.bound, UNANSWERED)
      stop_probing(all[i])
    end
  end
end

-- Entries of records that have aged out leave their indexes, a few at a time.
local function sweep(most)
  for _, entry in ipairs(call('ZRANGEBYSCORE', K.retention(), '-inf', now, 'LIMIT', 0, most)) do
    local tenant, state, id = string.match(entry, '^([^|]+)|([^|]+)|(.+)$')
    call('ZREM', K.jobs(tenant), id)
    call('ZREM', K.jobs_in(tenant, state), id)
    call('ZREM', K.dead(tenant), id)
    if call('EXISTS', K.jobs(tenant)) == 0 then redis.pcall('SREM', K.tenants(), tenant) end
    call('ZREM', K.retention(), entry)
  end
end

-- The job lets go of its context, and the next one takes its turn.
local function pass_on(tenant, context, id, bells)
  local next_id = context_release(tenant, context, id, a.keep.context)
  local following, passed_by = next_id and read(next_id), {}
  -- Who makes no sense must not hold the context for ever, and who is a newer release's to start waits for that.
  while next_id and not (following and following.place == 'behind') do
    if following and following.newer then passed_by[#passed_by + 1] = following else set_aside(next_id, 'line') end
    next_id = context_release(tenant, context, next_id, a.keep.context)
    following = next_id and read(next_id)
  end
  for _, newer in ipairs(passed_by) do context_wait(tenant, context, newer.id, newer.seq) end
  if following then
    local later = tonumber(call('HGET', K.job(following.id), 'run_at') or '') or 0
    if later > now then to_parked(following, 'scheduled', later)
    else
      to_ready(following)
      dispatch(following.queue, 1, bells)
    end
  end
end

-- Whether the job stands where its record says: nobody looks for one that was set aside. Of a place that a newer release
-- knows it is believed.
local function is_there(r)
  if r.newer then return true end
  if r.place == 'ready' then
    return call('ZSCORE', level(r) and K.suspects(r.queue, level(r)) or K.ready(r.line, r.priority, r.tenant), r.id)
  elseif r.place == 'rung' then return call('ZSCORE', K.rung(bell_queue(r)), r.id)
  elseif r.place == 'running' then return r.worker and call('SISMEMBER', K.held(r.worker), r.id) == 1
  elseif r.place == 'parked' then return call('ZSCORE', K.parked(), r.id) end
end

-- Who holds the context. One that is nowhere will never let go of it. Without bells nothing is written: then it is who will hold it.
local function holder_of(tenant, context, bells)
  local holder = context_holder(tenant, context)
  local r = holder and read(holder)
  if r and is_there(r) then return holder end
  local first = call('ZRANGE', K.line(tenant, context), 0, 0)[1]
  if not bells then return first end
  -- A line behind nobody: its first job takes its turn.
  if not holder then
    if not first then return nil end
    holder = ''
    context_hold(tenant, context, holder)
  end
  if call('EXISTS', K.job(holder)) == 1 then set_aside(holder, 'context') end
  pass_on(tenant, context, holder, bells)
  return context_holder(tenant, context)
end

-- A request to stop a running job: its worker hears of it at its next heartbeat, and whoever comes next obeys it.
local function ask_to_stop(r, state)
  call('HSETNX', K.job(r.id), 'stop', state)
  call('SADD', K.stops(r.worker), r.id)
end

local stop_waiting

-- Nobody waits any more for the jobs that this one asked for.
local function stop_children(r, bells)
  local children = call('SMEMBERS', K.awaits(r.id))
  call('DEL', K.awaits(r.id))
  for _, id in ipairs(children) do
    local child = read(id)
    call('HSET', K.children(r.id), id, 'cancelled ')
    if child and not child.newer and child.place ~= 'ended' then
      try(id, 'children', function()
        if child.place == 'running' then ask_to_stop(child, 'cancelled') else stop_waiting(child, 'cancelled', bells) end
      end)
    end
  end
end

local function tell_end(id, state, parent)
  local answer, why = get(id, 'answer', 'error')
  call('HSET', K.children(parent), id, state .. ' ' .. (state == 'failed' and why or ''))
  if answer and answer ~= '' then call('HSET', K.answers(parent), id, answer) end
end

-- Whoever asked for this job hears how it ended, and goes on once it waits for no other.
local function tell_parent(r, state, bells)
  local parent = get(r.id, 'parent')
  if not parent or call('SREM', K.awaits(parent), r.id) == 0 then return end
  tell_end(r.id, state, parent)
  local p = read(parent)
  if p and p.place == 'parked' and get(parent, 'reason') == 'waiting_children' and call('EXISTS', K.awaits(parent)) == 0 then
    leave_place(p)
    to_ready(p)
    dispatch(p.queue, 1, bells)
  end
end

-- The end of a job: told to whoever waits, kept for a while; the next job of its context takes its turn. run: the nonce of
-- the run that brings it about, which tells Celery where that is to be told.
local function end_job(r, state, bells, run)
  move(r, 'ended', state)
  call('HSET', K.job(r.id), 'state', state, 'ended', now)
  redis.pcall('HINCRBY', K.ends(), state, 1)
  call('HDEL', K.job(r.id), 'stop', 'asked', 'asked_until', 'asked_over')
  call('ZREM', K.deadlines(), r.id)
  doubt_open_calls(r.id)
  if state == 'succeeded' then books.learn(r) end
  books.list(r.id)
  stop_children(r, bells)
  try(r.id, 'parent', function() tell_parent(r, state, bells) end)
  if get(r.id, 'tell') then leave_untold(r, run, bells) else let_age(r, state) end
  if r.context then pass_on(r.tenant, r.context, r.id, bells) end
  call('PUBLISH', K.ended(), r.id)
end

local STOPPED = {
  cancelled = '["cancelled","the job was cancelled"]',
  expired = '["expired","the job had not ended by its deadline"]',
}

-- An end that no run brings about: cancelled, expired.
local function stop_job(r, state, bells, run)
  end_job(r, state, bells, run)
  call('HSET', K.job(r.id), 'error', STOPPED[state])
end

-- A job that no worker holds leaves its place for good.
function stop_waiting(r, state, bells)
  leave_place(r)
  stop_job(r, state, bells)
end

-- Whether a worker that lives and serves the job's queue knows its agent.
local function known_somewhere(r)
  for _, worker in ipairs(call('ZRANGEBYSCORE', K.workers(), now, '+inf')) do
    local queues, agents = of_worker(worker, 'queues', 'agents')
    if queues and serves(queues, r.queue) and serves(agents or '', r.agent) then return true end
  end
end

-- A worker that does not know its agent is not asked again at once: others may know it, while a deploy rolls. One that does has the
-- job sooner or later, by chance: the old ones take bells too. Where it is long ago and nobody alive does, it fails. since: when
-- this was first found, or nil. Answers until when it waits, or nil.
local function leave_to_knowing(r, worker, since, bells, run)
  since = math.min(tonumber(since or '') or now, now)
  local known, passed = known_somewhere(r), now - since
  if passed >= a.keep.unknown and not known then
    call('HSET', K.job(r.id), 'error', AGENT_UNKNOWN)
    end_job(r, 'failed', bells, run)
    return nil
  end
  -- A second at first where one that lives knows it, else five (ms); in both cases more where nobody had it for long.
  local wait = known and math.max(1000, math.floor(passed / 16)) or math.max(5000, math.floor(passed / 4))
  local later = now + math.min(30000, wait)
  call('HSET', K.job(r.id), 'excluded', worker, 'unknown_since', since)
  to_parked(r, 'agent_unknown', later)
  return later
end

-- A job whose worker is gone. A crash counts unless a step was made since the last one. Answers what became of it.
local function take_away(r, crowd, bells)
  local steps, before = get(r.id, 'steps', 'crash_steps')
  steps, before = tonumber(steps or 0), tonumber(before or 0)
  local alone = crowd == 1 and r.crashes >= 4
  doubt_open_calls(r.id)
  let_go(r)
  if r.stop then stop_job(r, r.stop, bells); return r.stop end
  call('HSET', K.job(r.id), 'crash_steps', steps)
  if steps <= before then
    if alone then
      call('HSET', K.job(r.id), 'dead', 1, 'crashes', r.crashes + 1, 'error',
        '["dead_letter","each of its runs was broken off, at last one that had a process for itself"]')
      call('ZADD', K.dead(r.tenant), r.seq, r.id)
      end_job(r, 'failed', bells)
      return 'dead'
    end
    r.crashes = math.min(4, r.crashes + 1)
    call('HSET', K.job(r.id), 'crashes', r.crashes)
  end
  to_ready(r)
  return 'ready'
end
