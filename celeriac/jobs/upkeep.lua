-- Upkeep: what others missed. Bells that nobody answered are rung again, at growing intervals and only into room; free
-- slots get their bells; workers whose lease ended offer no slots; the totals are counted anew once per lease.
-- a: lease (ms). Answers bells to publish. Two at once do no harm.
local bells = {}

local function ring_again(queue)
  local template = call('GET', K.bell(queue))
  for _, id in ipairs(call('ZRANGEBYSCORE', K.rung(queue), '-inf', now, 'LIMIT', 0, 200)) do
    -- A list that holds every bell was only slow: another one would be for nothing.
    if template and call('LLEN', queue) >= call('ZCARD', K.rung(queue)) then return end
    if get(id, 'place') == 'rung' then
      local rings = call('HINCRBY', K.job(id), 'rings', 1)
      call('ZADD', K.rung(queue), now + math.min(60000, PATIENCE * 2 ^ (rings - 1)), id)
      ring(id, queue, template, bells)
    else
      call('ZREM', K.rung(queue), id)
    end
  end
end

for _, worker in ipairs(call('ZRANGEBYSCORE', K.workers(), '-inf', now, 'LIMIT', 0, 200)) do
  if call('HGET', K.worker(worker), 'taking') == '1' then
    change_worker(worker, function() call('HSET', K.worker(worker), 'taking', '0') end)
  end
end
if call('SET', K.recount(), '1', 'NX', 'PX', a.lease) then
  local totals = {}
  for _, worker in ipairs(call('ZRANGE', K.workers(), 0, -1)) do
    local group, free = offer(worker)
    if group then totals[group] = (totals[group] or 0) + free end
  end
  call('DEL', K.free())
  for group, free in pairs(totals) do call('HSET', K.free(), group, free) end
end

local free, looked_at = call('HGETALL', K.free()), {}
for i = 1, #free, 2 do
  local group = free[i]
  if tonumber(free[i + 1]) > 0 then
    for _, queue in ipairs(queues_of(group)) do
      if not looked_at[queue] then
        looked_at[queue] = true
        ring_again(queue)
      end
    end
    dispatch_for(group, 200, bells)
  end
end
sweep(200)
return bells
