-- Claim: a worker takes a job whose bell is out, whatever bell it came by. The same claim again gets the same answer.
-- What makes no sense is set aside: it would be claimed and handed back for ever.
-- a: id, worker, nonce, spoilt (whether the caller made nothing of the answer), keep. Answers {"run", record (HGETALL),
-- context version, turns, journal, doubts (call, how it is kept, ...)}, {"ended", record} where this run is to tell Celery of the end, {"nothing", place, bells}
-- or {"gone"}.
if not call('ZSCORE', K.workers(), a.worker) then return {'gone'} end
local r, bells = read(a.id), {}
if not r then return {'nothing', 'unknown', bells} end
if r.place == 'ended' and take_telling(a.id, a.nonce) then return {'ended', call('HGETALL', K.job(a.id))} end
local again = r.place == 'running' and r.worker == a.worker and r.nonce == a.nonce
if not again and r.place ~= 'rung' then return {'nothing', r.place, bells} end

local NO_VERSION = -1 -- that no context is at: it takes no turn

-- All that the run is given, read before anything is written.
local function look()
  local retries, attempts, created, request_id, read_version, read_born, steps, in_doubt =
    get(a.id, 'retries', 'attempts', 'created', 'request_id', 'read_version', 'read_born', 'steps', 'in_doubt')
  assert(retries and attempts and created and are_counts(retries, attempts, created, read_version, steps), 'no number')
  assert(request_id and call('HEXISTS', K.job(a.id), 'spec') == 1, 'no request')
  call('HLEN', K.calls(a.id))
  local given = {version = 0, turns = {}, journal = call('LRANGE', K.journal(a.id), 0, -1), doubts = {}}
  -- Calls in doubt for the step that is to be made, whose providers may have kept the answer: it is looked up there.
  local all = (tonumber(in_doubt or '') or 0) > 0 and call('HGETALL', K.calls(a.id)) or {}
  for i = 1, #all, 2 do
    local facts = string.match(all[i + 1], '^doubt %d+ %d+ %d+ (.*"digest":.*)$')
    if facts and tonumber(string.match(facts, '"step":(%d+)')) == #given.journal + 1 then
      given.doubts[#given.doubts + 1] = all[i]
      given.doubts[#given.doubts + 1] = all[i + 1]
    end
  end
  if r.context then
    local version, messages, bytes, born =
      unpack(call('HMGET', K.context(r.tenant, r.context), 'version', 'messages', 'bytes', 'born'))
    assert(are_counts(version, messages, bytes), 'no number')
    given.version, given.born = tonumber(version or 0), born
    given.turns = call('LRANGE', K.turns(r.tenant, r.context), 0, -1)
    -- Steps that were made go with the turns that they were made from: a context deleted since takes no turn of theirs.
    given.known = read_version and (again or tonumber(steps or 0) > 0)
    if given.known then
      given.version = context_same(read_version, read_born, born) and tonumber(read_version) or NO_VERSION
    end
  end
  return given
end
local readable, given = pcall(look)

if not again then
  if r.stop then
    stop_waiting(r, r.stop, bells)
    return {'nothing', r.stop, bells}
  end
  local deadline, excluded, unknown_since = get(a.id, 'deadline', 'excluded', 'unknown_since')
  if (tonumber(deadline or '') or math.huge) <= now then
    stop_waiting(r, 'expired', bells)
    return {'nothing', 'expired', bells}
  end
  -- A suspect runs in the company that it is allowed, and nobody else beside it: a bell may have been taken before the
  -- worker heard that it is in quarantine.
  local quarantine = call('HGET', K.worker(a.worker), 'quarantine')
  if level(r) and not (quarantine and suspects_room(a.worker, level(r)) > 0) or quarantine and not level(r) then
    -- Upkeep rings for it: rung at once, the same worker might take it again.
    leave_place(r)
    to_ready(r)
    return {'nothing', 'quarantine', bells}
  end
  if excluded == a.worker then
    leave_place(r)
    local waits = leave_to_knowing(r, a.worker, unknown_since, bells)
    dispatch(r.queue, 1, bells)
    return {'nothing', waits and 'excluded' or 'given_up', bells, r.agent}
  end
end
if not readable or a.spoilt then
  -- It stands in no line: what can still end it is its deadline, or who cancels it.
  if again then let_go(r) else leave_place(r) end
  move(r, 'ready')
  set_aside(a.id, again and 'held' or 'rung')
  if r.context then try(a.id, 'context', function() pass_on(r.tenant, r.context, a.id, bells) end) end
  dispatch(r.queue, 1, bells)
  return {'nothing', 'broken', bells}
end
if not again then
  leave_place(r)
  move(r, 'running')
  call('HSET', K.job(a.id), 'worker', a.worker, 'nonce', a.nonce, 'started', now)
  call('HINCRBY', K.job(a.id), 'attempts', 1)
  r.worker = a.worker
  take_slot(r)
end
if r.context and not given.known then
  call('HSET', K.job(a.id), 'read_version', given.version, 'read_born', given.born or '')
end
return {'run', call('HGETALL', K.job(a.id)), given.version, given.turns, given.journal, given.doubts}
