-- Register: a worker enters under a new name and takes bells from now on.
-- a: worker, queues (names joined by commas, sorted), slots, protocol, agents (names joined by commas), lease (ms), limits
-- (t:tenant, t:*, a:agent -> most jobs at once), bells (queue -> template, or queue -> "" where the broker is another server).
-- Answers {"registered", beats, bells}, or {"refused"} where the fleet already speaks a newer protocol.
if a.protocol < (tonumber(call('GET', K.protocol())) or 0) then return {'refused'} end
local beats = call('INCR', K.beats())
if call('EXISTS', K.worker(a.worker)) == 1 then return {'registered', beats, {}} end

call('SET', K.protocol(), a.protocol)
call('DEL', K.limits())
for whose, most in pairs(a.limits) do call('HSET', K.limits(), whose, most) end
for queue, template in pairs(a.bells) do
  if template ~= '' then call('SET', K.bell(queue), template) else call('DEL', K.bell(queue)) end
end
call('ZADD', K.workers(), now + a.lease, a.worker)
change_worker(a.worker, function()
  call('HSET', K.worker(a.worker), 'queues', a.queues, 'slots', a.slots, 'running', 0, 'taking', 1, 'lease', a.lease,
    'protocol', a.protocol, 'agents', a.agents, 'since', now)
end)
local bells = {}
dispatch_for(a.queues, math.min(a.slots + MARGIN, 200), bells)
return {'registered', beats, bells}
