-- Submit: record, index, context and line in one step, and a bell if a slot is free. Sent twice, it is one job. With `dry_run` it only
-- looks: the checks are the same, the answer too, and nothing is written.
-- a: id, tenant, agent, queue, line, priority, context, if_busy, request_id, metadata (text), ignore_result, canvas (text), tell, run_at (ms),
-- deadline (ms), expires_in (ms), idempotency, fingerprint, parent (id, worker, nonce of the run that asks for it; how many it may
-- ask for in one life; ancestors; others, ids that it is about to ask for too), scopes (whose budgets it is in, where somebody asks for
-- its outlook), told (those of them of which that says what they leave, null for all), max_cost (nano-dollars, text), impatient (fails
-- where money is spent), own_model (whether it asks a model of its own choice), dry_run, keep; null where there is none.
-- ARGV[2]: the spec.
-- Answers {"accepted", created ms, holder of the context or "", resume_at or "", bells, its outlook or {}}, {"known" or "reused", id, created ms},
-- {"untimely", what is wrong with its times}, {"busy", holder, bells}, or to a run {"fenced"}, {"stop", "cancelled" or "expired"}
-- or {"many"}.
local MOST_BELOW = 1000 -- jobs that may work for one, at any depth: they end with it in one script
local YEAR = 366 * 86400000 -- no time lies further ahead
local function given(name) return a[name] ~= cjson.null and a[name] or nil end

local context, key, parent = given('context'), given('idempotency'), given('parent')
if parent then
  local p = read(parent.id)
  if fence(p, 'submit', parent.worker, parent.nonce) ~= 'mine' then return {'fenced'} end
  if p.stop then return {'stop', p.stop} end
  -- One that there is no room for would leave those before it for nothing.
  local new = 0
  for _, known in ipairs(call('HMGET', K.children(parent.id), a.id, unpack(parent.others))) do
    if not known then new = new + 1 end
  end
  if new > 0 then
    local below, below_before = get(parent.ancestors[#parent.ancestors][1], 'below_jobs', 'below_before')
    local asked, asked_before = call('HLEN', K.children(parent.id)), get(parent.id, 'asked_before')
    -- Those of former lives ended with them.
    below = (tonumber(below or '') or 0) - (tonumber(below_before or '') or 0)
    asked = asked - (tonumber(asked_before or '') or 0)
    if asked + new > parent.most or below + new > MOST_BELOW then return {'many'} end
  end
end
if call('EXISTS', K.job(a.id)) == 1 then
  if parent then
    if get(a.id, 'parent') ~= parent.id then return {'many'} end
    -- The store may have lost that it was asked for, or the end of it. Or its parent ended before, and is started again: then it
    -- may have been so too, and what the parent was told of it is over. One that was asked to stop will not answer.
    local told = call('HGET', K.children(parent.id), a.id) or ''
    if string.sub(told, 1, 10) ~= 'succeeded ' then
      local place, stop = get(a.id, 'place', 'stop')
      if place == 'ended' then tell_end(a.id, get(a.id, 'state'), parent.id)
      elseif told == '' or not stop then
        call('HSET', K.children(parent.id), a.id, '')
        call('SADD', K.awaits(parent.id), a.id)
      end
    end
  end
  local created, resume_at = get(a.id, 'created', 'resume_at')
  return {'accepted', tonumber(created), waits_for(a.id) or '', resume_at or '', {}, given('scopes') and outlook(read(a.id), a.scopes, a.told) or {}}
end
if key then
  local known = call('GET', K.idempotency(a.tenant, key))
  if known then
    local fingerprint, created = get(known, 'fingerprint', 'created')
    if fingerprint then return {fingerprint == a.fingerprint and 'known' or 'reused', known, created} end
  end
end
-- By this clock, and after the key: a repetition may come when its times are over.
local run_at, deadline = given('run_at'), given('deadline')
if given('expires_in') then deadline = math.min(deadline or math.huge, now + a.expires_in) end
if deadline and deadline <= now then
  if not parent then return {'untimely', 'over'} end
  ask_to_stop(read(parent.id), 'expired')
  return {'stop', 'expired'}
end
if deadline and deadline > now + YEAR then return {'untimely', 'deadline far'} end
if run_at and run_at > now + YEAR then return {'untimely', 'run_at far'} end
if run_at and deadline and run_at >= deadline then return {'untimely', 'late'} end
-- Whoever stores nothing needs no room.
local full = not a.dry_run and no_room()
if full then return full end
local bells = {}
local holder = context and holder_of(a.tenant, context, not a.dry_run and bells or nil)
if holder and a.if_busy == 'reject' then return {'busy', holder, bells} end
if a.dry_run then
  local later = not holder and run_at and run_at > now and run_at
  local r = {queue = a.queue, line = a.line, priority = a.priority, tenant = a.tenant, agent = a.agent, resume_at = later or nil,
    place = holder and 'behind' or later and 'parked' or nil}
  return {'accepted', now, holder or '', later and tostring(later) or '', {}, outlook(r, a.scopes, a.told)}
end

local seq = call('INCR', K.seq())
call('HSET', K.job(a.id), 'tenant', a.tenant, 'agent', a.agent, 'queue', a.queue, 'line', a.line, 'priority', a.priority,
  'seq', seq, 'created', now, 'attempts', 0, 'retries', 0, 'ignore_result', a.ignore_result and 'true' or 'false',
  'request_id', a.request_id, 'metadata', a.metadata, 'spec', ARGV[2], 'place', 'new')
call('ZADD', K.jobs(a.tenant), seq, a.id)
if type(redis.pcall('SADD', K.tenants(), a.tenant)) == 'table' then
  call('DEL', K.tenants())
  call('SADD', K.tenants(), a.tenant)
end
if key then
  call('SET', K.idempotency(a.tenant, key), a.id)
  call('HSET', K.job(a.id), 'idempotency', key, 'fingerprint', a.fingerprint)
end
if deadline then
  call('HSET', K.job(a.id), 'deadline', deadline)
  call('ZADD', K.deadlines(), deadline, a.id)
end
if given('canvas') then call('HSET', K.job(a.id), 'canvas', a.canvas) end
if a.stream then call('HSET', K.job(a.id), 'stream', 1) end
if parent then
  call('HSET', K.job(a.id), 'parent', parent.id, 'ancestors', cjson.encode(parent.ancestors))
  for _, ancestor in ipairs(parent.ancestors) do
    if call('EXISTS', K.job(ancestor[1])) == 1 then call('HINCRBY', K.job(ancestor[1]), 'below_jobs', 1) end
  end
  call('HSET', K.children(parent.id), a.id, '')
  call('SADD', K.awaits(parent.id), a.id)
end
if given('max_cost') then call('HSET', K.job(a.id), 'max_cost', a.max_cost) end
if a.impatient then call('HSET', K.job(a.id), 'impatient', 1) end
if a.own_model then call('HSET', K.job(a.id), 'own_model', 1) end
if a.tell then call('HSET', K.job(a.id), 'tell', 1) end
if run_at then call('HSET', K.job(a.id), 'run_at', run_at) end
if context then call('HSET', K.job(a.id), 'context', context) end
local r = read(a.id)
local resume_at = enter(r, context, holder, bells)
if given('canvas') and call('EXISTS', K.revoked(a.id)) == 1 then stop_waiting(read(a.id), 'cancelled', bells) end
sweep(3)
return {'accepted', now, holder or '', resume_at or '', bells, given('scopes') and outlook(read(a.id), a.scopes, a.told) or {}}
