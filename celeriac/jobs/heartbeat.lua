-- Heartbeat: one lease for all jobs of a worker. It never registers: an unknown name is told so and starts anew.
-- a: worker, slots, taking, lease (ms). Answers {"alive", 1 if this worker does the upkeep now} or {"gone"}.
if not call('ZSCORE', K.workers(), a.worker) then return {'gone'} end
call('ZADD', K.workers(), now + a.lease, a.worker)
local taking = a.taking and '1' or '0'
local slots, was = unpack(call('HMGET', K.worker(a.worker), 'slots', 'taking'))
if tonumber(slots) ~= a.slots or was ~= taking then
  change_worker(a.worker, function() call('HSET', K.worker(a.worker), 'slots', a.slots, 'taking', taking) end)
end
return {'alive', call('SET', K.upkeep(), a.worker, 'NX', 'PX', 900) and 1 or 0}
