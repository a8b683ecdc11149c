-- Shared, between lines.lua and ends.lua: ends of which Celery has still to be told. `untold` holds those jobs by when to
-- ring for them (again). In the record: teller and telling (the run that tells, and until when no other is to), tellings
-- (how many have tried), tell_rings (bells rung for it).
local TELLING = 10000      -- ms that a run has to tell
local TELL_AGAIN = 300000  -- ms between two bells for one end, at most
local TELL_TRIES = 100     -- runs that failed to tell, over eight hours, before it is given up
local EVENTS_KEPT = 3600000 -- ms after the end: by then whoever read along has come back, and the record has the answer
local TELL_BELLS = 100     -- ends that are rung for at once: thousands of them must not hold up the jobs that wait; one whose
                           -- telling was put off counts too

-- A record and all that belongs to it age together.
local function keep_for(id, ms)
  for _, key in ipairs({K.job(id), K.journal(id), K.calls(id), K.children(id), K.answers(id)}) do
    call('PEXPIRE', key, ms)
  end
  call('PEXPIRE', K.events(id), math.min(ms, EVENTS_KEPT))
  local idem, tenant = get(id, 'idempotency', 'tenant')
  if idem then call('PEXPIRE', K.idempotency(tenant, idem), ms) end
end

-- How long things are kept, with every script that may end a job (`a.keep`): result, dead, context, idempotency, and a job
-- whose agent nobody knows (unknown), in ms.
local function keep_ms(r)
  local ms = get(r.id, 'dead') and a.keep.dead or a.keep.result
  local idem, created = get(r.id, 'idempotency', 'created')
  if idem then ms = math.max(ms, a.keep.idempotency - (now - (tonumber(created or '') or now))) end
  return ms
end

-- The record of an ended job begins to age.
local function let_age(r, state)
  local ms = keep_ms(r)
  keep_for(r.id, ms)
  call('ZADD', K.retention(), now + ms, r.tenant .. '|' .. state .. '|' .. r.id)
end

-- The job's own queue, or if nobody serves that any more another one: every worker can tell.
local function queue_to_tell(r)
  local groups, other = call('HGETALL', K.free()), nil
  for i = 1, #groups, 2 do
    if serves(groups[i], r.queue) then return r.queue end
    other = other or queues_of(groups[i])[1]
  end
  return other
end

-- Ends that are rung for, or are being told.
local function in_telling() return call('ZCOUNT', K.untold(), '(' .. now, '+inf') end

local function is_to_tell(r) return r and r.place == 'ended' end

-- The record is missing or makes no sense: nobody is rung for it again. It ages like any other that has ended.
local function cannot_tell(id)
  call('ZREM', K.untold(), id)
  if call('EXISTS', K.job(id)) == 0 then return end
  set_aside(id, 'untold')
  local r = read(id)
  if is_to_tell(r) then try(id, 'untold', function() let_age(r, get(id, 'state')) end) end
end

local function ring_to_tell(r, bells)
  local queue = queue_to_tell(r)
  if not queue then return end
  if not ring(r.id, queue, bells) then cannot_tell(r.id); return end
  local rings = call('HINCRBY', K.job(r.id), 'tell_rings', 1)
  call('ZADD', K.untold(), now + math.min(TELL_AGAIN, PATIENCE * 2 ^ (rings - 1)), r.id)
end

-- The oldest end that nobody rang for yet, or whose bell was not answered.
local function ring_next_untold(bells)
  if in_telling() >= TELL_BELLS then return end
  each_due(K.untold(), 10, function(id, r)
    if is_to_tell(r) and try(id, 'untold', function() ring_to_tell(r, bells) end) then return 'stop' end
    cannot_tell(id)
  end)
end

local function forget_untold(id)
  call('ZREM', K.untold(), id)
  call('HDEL', K.job(id), 'teller', 'telling', 'tellings', 'tell_rings')
end

-- run: the nonce of the run that ends the job and tells. Without one a bell is rung for a run that does.
local function leave_untold(r, run, bells)
  call('ZADD', K.untold(), run and now + TELLING or now, r.id)
  if run then call('HSET', K.job(r.id), 'teller', run, 'telling', now + TELLING)
  elseif in_telling() < TELL_BELLS then ring_to_tell(r, bells) end
end

-- Whether this run is to tell: there is something to tell, and nobody else is at it.
local function take_telling(id, nonce)
  if not call('ZSCORE', K.untold(), id) then return false end
  local teller, busy_until = get(id, 'teller', 'telling')
  if teller == nonce then return true end
  busy_until = tonumber(busy_until or 0)
  -- Further ahead than a run may have: by another clock, and who knows how much of it is left.
  if busy_until > now + TELLING then
    busy_until = now + TELLING
    call('HSET', K.job(id), 'telling', busy_until)
    call('ZADD', K.untold(), busy_until, id)
  end
  if busy_until > now then return false end
  call('HSET', K.job(id), 'teller', nonce, 'telling', now + TELLING)
  call('HINCRBY', K.job(id), 'tellings', 1)
  call('ZADD', K.untold(), 'GT', now + TELLING, id)
  return true
end
