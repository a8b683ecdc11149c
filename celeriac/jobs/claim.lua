-- Claim: a worker takes a job whose bell is out, whatever bell it came by. The same claim again gets the same answer.
-- a: id, worker, nonce, keep. Answers {"run", record (HGETALL), context version, turns, journal}, {"ended", record}
-- where this run is to tell Celery of the end, {"nothing", place, bells} or {"gone"}.
if not call('ZSCORE', K.workers(), a.worker) then return {'gone'} end
local r, bells = read(a.id), {}
if not r then return {'nothing', 'unknown', bells} end
if r.place == 'ended' and take_telling(a.id, a.nonce) then return {'ended', call('HGETALL', K.job(a.id))} end
local again = r.place == 'running' and r.worker == a.worker and r.nonce == a.nonce
if not again and r.place ~= 'rung' then return {'nothing', r.place, bells} end

if not again then
  if r.stop then
    stop_waiting(r, r.stop, bells)
    return {'nothing', r.stop, bells}
  end
  local deadline, excluded, unknown_since = get(a.id, 'deadline', 'excluded', 'unknown_since')
  if deadline and tonumber(deadline) <= now then
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
  leave_place(r)
  move(r, 'running')
  call('HSET', K.job(a.id), 'worker', a.worker, 'nonce', a.nonce, 'started', now)
  call('HINCRBY', K.job(a.id), 'attempts', 1)
  r.worker = a.worker
  take_slot(r)
end
local version, turns = 0, {}
if r.context then
  version = tonumber(call('HGET', K.context(r.tenant, r.context), 'version')) or 0
  turns = call('LRANGE', K.turns(r.tenant, r.context), 0, -1)
  -- Steps that were made go with the turns that they were made from: a context deleted since takes no turn of theirs.
  local was_read, steps = get(a.id, 'read_version', 'steps')
  if was_read and (again or tonumber(steps or 0) > 0) then version = tonumber(was_read)
  else call('HSET', K.job(a.id), 'read_version', version) end
end
return {'run', call('HGETALL', K.job(a.id)), version, turns, call('LRANGE', K.journal(a.id), 0, -1)}
