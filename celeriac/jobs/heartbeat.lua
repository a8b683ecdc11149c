-- Heartbeat: one lease for all jobs of a worker. It never registers: an unknown name is told so and starts anew.
-- a: worker, slots, taking, lease (ms), unclaimed (bells that it took and has not claimed by), list (whether to answer the jobs
-- that it holds).
-- Answers {"alive", 1 if this worker does the upkeep now, beats, 1 if it is quarantined, jobs to stop as id and why, jobs held,
-- writes} or {"gone", beats}. Beats and the worker's writes (claims and releases) only ever grow; where they do not, the store
-- has lost history.
local beats = call('INCR', K.beats())
if not call('ZSCORE', K.workers(), a.worker) then return {'gone', beats} end
-- A record that is no hash is not renewed: its lease ends, and it is set aside.
local record = redis.pcall('HMGET', K.worker(a.worker), 'slots', 'taking', 'quarantine', 'unclaimed')
if record.err then return {'gone', beats} end
local slots, was, quarantine, unclaimed = unpack(record)
call('ZADD', K.workers(), now + a.lease, a.worker)
local taking = a.taking and '1' or '0'
if tonumber(slots) ~= a.slots or was ~= taking then
  change_worker(a.worker, function() call('HSET', K.worker(a.worker), 'slots', a.slots, 'taking', taking) end)
end
if tonumber(unclaimed or 0) ~= a.unclaimed then call('HSET', K.worker(a.worker), 'unclaimed', a.unclaimed) end
local stops = {}
for _, id in ipairs(call('SMEMBERS', K.stops(a.worker))) do
  local r = read(id)
  -- A record that makes no sense must not make its worker deaf: its run can write nothing, and is told once to stop.
  if not r then
    call('SREM', K.stops(a.worker), id)
    if call('EXISTS', K.job(id)) == 1 then set_aside(id, 'stops') end
  end
  stops[#stops + 1] = id
  stops[#stops + 1] = r and r.stop or 'cancelled'
end
local upkeep = not stands(K.upkeep(), 900)
if upkeep then call('SET', K.upkeep(), a.worker, 'PX', 900) end
return {'alive', upkeep and 1 or 0, beats, quarantine and 1 or 0, stops,
  a.list and call('SMEMBERS', K.held(a.worker)) or {}, tonumber(call('HGET', K.worker(a.worker), 'writes') or 0)}
