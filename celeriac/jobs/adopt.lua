-- Adopt: the store lost history, and a worker still runs a job that the store knows as waiting, or not at all: it is this
-- run's again, from the worker's own copy of the record and of its steps. a: id, worker, nonce, steps (how many).
-- ARGV[2] and on: the steps, packed; then the record as name, value, ...
-- Answers {"mine", "kept", "restored" or "taken"} or {"fenced"}: another run holds it, or it has ended.
if not call('ZSCORE', K.workers(), a.worker) then return {'fenced'} end
local own, how = {}, 'kept'
for i = 2 + a.steps, #ARGV, 2 do own[ARGV[i]] = ARGV[i + 1] end
if call('EXISTS', K.job(a.id)) == 0 then how = 'restored' end
local r = read(a.id)
if how == 'kept' then
  if not r or r.newer or r.place == 'ended' or r.place == 'running' and r.nonce ~= a.nonce then return {'fenced'} end
  if r.place ~= 'running' then how = 'taken' end
end
local tenant, context = own.tenant, own.context
local holder = context and context_holder(tenant, context)
if holder and holder ~= a.id then return {'fenced'} end
local stored = call('LLEN', K.journal(a.id)) -- before anything is written: it may find what makes no sense

if how == 'restored' then
  for name, value in pairs(own) do call('HSET', K.job(a.id), name, value) end
  call('HSET', K.job(a.id), 'place', 'new')
  call('HDEL', K.job(a.id), 'worker', 'nonce')
  if own.deadline then call('ZADD', K.deadlines(), own.deadline, a.id) end
  if own.idempotency then call('SET', K.idempotency(tenant, own.idempotency), a.id, 'NX') end
  if tonumber(own.seq) > tonumber(call('GET', K.seq()) or 0) then call('SET', K.seq(), own.seq) end
  call('ZADD', K.jobs(tenant), own.seq, a.id)
  if type(redis.pcall('SADD', K.tenants(), tenant)) == 'table' then
    call('DEL', K.tenants())
    call('SADD', K.tenants(), tenant)
  end
  r = read(a.id)
end
-- A step that the store lost would be bought again by whoever comes next.
for i = stored, a.steps - 1 do call('RPUSH', K.journal(a.id), ARGV[2 + i]) end
if a.steps > 0 then call('HSET', K.job(a.id), 'steps', math.max(stored, a.steps)) end
if r.place == 'running' then
  if r.worker == a.worker then return {'mine', how} end
  let_go(r)
else
  leave_place(r)
  if context then context_hold(tenant, context, a.id) end
  -- No legal move: history is mended here, not made.
  if SEEN_AS[r.place] then call('ZREM', K.jobs_in(tenant, SEEN_AS[r.place]), a.id) end
  call('ZADD', K.jobs_in(tenant, 'running'), r.seq, a.id)
  if r.place ~= 'rung' then count_busy(r, 1) end
end
call('HSET', K.job(a.id), 'place', 'running', 'worker', a.worker, 'nonce', a.nonce)
-- The claim that the store forgot.
if how == 'taken' then call('HSET', K.job(a.id), 'attempts', own.attempts, 'started', own.started) end
r.worker = a.worker
take_slot(r)
if r.stop then call('SADD', K.stops(a.worker), a.id) end
return {'mine', how}
