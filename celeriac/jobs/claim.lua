-- Claim: a worker takes a job whose bell is out, whatever bell it came by. The same claim again gets the same answer.
-- a: id, worker, nonce. Answers {"run", record (HGETALL), context version, turns}, {"nothing", place} or {"gone"}.
if not call('ZSCORE', K.workers(), a.worker) then return {'gone'} end
local r = read(a.id)
if not r then return {'nothing', 'unknown'} end
local again = r.place == 'running' and r.worker == a.worker and r.nonce == a.nonce
if not again and r.place ~= 'rung' then return {'nothing', r.place} end

if not again then
  move(r, 'running')
  call('ZREM', K.rung(r.queue), a.id)
  call('HSET', K.job(a.id), 'worker', a.worker, 'nonce', a.nonce, 'started', now)
  call('HDEL', K.job(a.id), 'rings')
  call('HINCRBY', K.job(a.id), 'attempts', 1)
  r.worker = a.worker
  take_slot(r)
end
local version, turns = 0, {}
if r.context then
  version = tonumber(call('HGET', K.context(r.tenant, r.context), 'version')) or 0
  turns = call('LRANGE', K.turns(r.tenant, r.context), 0, -1)
end
return {'run', call('HGETALL', K.job(a.id)), version, turns}
