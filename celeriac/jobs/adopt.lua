-- Adopt: the store lost history, and a worker still runs a job that the store knows as waiting, or not at all: it is this
-- run's again, from the worker's own copy of the record. a: id, worker, nonce, record (name, value, ...), context hold.
-- Answers {"mine", "kept", "restored" or "taken"} or {"fenced"}: another run holds it, or it has ended.
if not call('ZSCORE', K.workers(), a.worker) then return {'fenced'} end
local how = 'kept'
if call('EXISTS', K.job(a.id)) == 0 then
  how = 'restored'
  for i = 2, #ARGV, 2 do call('HSET', K.job(a.id), ARGV[i], ARGV[i + 1]) end
  call('HSET', K.job(a.id), 'place', 'new')
  call('HDEL', K.job(a.id), 'worker', 'nonce')
  local seq = tonumber(call('HGET', K.job(a.id), 'seq') or 0)
  if seq > tonumber(call('GET', K.seq()) or 0) then call('SET', K.seq(), seq) end
end
local r = read(a.id)
if not r then return {'fenced'} end
if r.place == 'running' then
  if r.nonce ~= a.nonce then return {'fenced'} end
  if r.worker == a.worker then return {'mine', how} end
  call('SREM', K.held(r.worker), a.id)
  count_busy(r, -1)
elseif r.place == 'ended' then return {'fenced'}
elseif how == 'kept' then
  how = 'taken'
  leave_place(r)
end
if r.context and r.place ~= 'running' then
  local holder = context_holder(r.tenant, r.context)
  if holder and holder ~= a.id then
    if how == 'restored' then call('DEL', K.job(a.id)) end
    return {'fenced'}
  end
  call('ZREM', K.line(r.tenant, r.context), a.id)
  context_hold(r.tenant, r.context, a.id)
end
-- No legal move: history is mended here, not made.
call('ZADD', K.jobs(r.tenant), r.seq, a.id)
for _, state in ipairs({'queued', 'parked'}) do call('ZREM', K.jobs_in(r.tenant, state), a.id) end
call('ZADD', K.jobs_in(r.tenant, 'running'), r.seq, a.id)
if r.place ~= 'rung' then count_busy(r, 1) end
call('HSET', K.job(a.id), 'place', 'running', 'worker', a.worker, 'nonce', a.nonce)
r.worker = a.worker
take_slot(r)
return {'mine', how}
