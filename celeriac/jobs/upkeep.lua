-- Upkeep: what others missed. Bells that nobody has are rung again, at growing intervals and only into room; free
-- slots get their bells; the totals are counted anew and tenants below their limit let in again once per lease; caps that
-- soon will be reached are found. a: lease (ms), budgets (where to look on for those, "0 0" to begin). Two at once do no harm.
-- Answers {bells to publish, what was set aside since that was last said (each with its number in that order), where to look on,
-- the newest alert's id or ""}.
local look_on = books.forecasts(a.budgets, 50)
local newest_alert = books.last_alert()

local bells = {}

-- Bells that workers took and have not claimed by yet, by group. What one that is silent had may be lost.
local unclaimed
local function unclaimed_of(queue)
  if not unclaimed then
    unclaimed = {}
    for _, worker in ipairs(call('ZRANGEBYSCORE', K.workers(), now + a.lease - PATIENCE, '+inf')) do
      local group, count = of_worker(worker, 'queues', 'unclaimed')
      if group then unclaimed[group] = (unclaimed[group] or 0) + tonumber(count or 0) end
    end
  end
  local count = 0
  for group, theirs in pairs(unclaimed) do
    if theirs > 0 and serves(group, queue) then
      -- As many as can be are those of the other queues: a bell too many does no harm.
      for _, other in ipairs(queues_of(group)) do
        if other ~= queue then theirs = theirs - math.max(0, call('ZCARD', K.rung(other)) - call('LLEN', other)) end
      end
      count = count + math.max(0, theirs)
    end
  end
  return count
end

local function ring_again(queue)
  -- A time that lies further ahead than it may is from another clock.
  for _, id in ipairs(call('ZRANGEBYSCORE', K.rung(queue), now + LONGEST_PATIENCE + 1, '+inf', 'LIMIT', 0, 200)) do
    call('ZADD', K.rung(queue), 'LT', now + LONGEST_PATIENCE, id)
  end
  local template = call('EXISTS', K.bell(queue)) == 1
  each_due(K.rung(queue), 200, function(id, r)
    -- Where the list and the workers have every bell, they are only slow: another one would be for nothing.
    local there = (template and call('LLEN', queue) or 0) + unclaimed_of(queue)
    if there >= call('ZCARD', K.rung(queue)) then return 'stop' end
    if r and r.place == 'rung' then
      if not try(id, 'rung', function()
        local rings = call('HINCRBY', K.job(id), 'rings', 1)
        call('ZADD', K.rung(queue), now + math.min(LONGEST_PATIENCE, PATIENCE * 2 ^ (rings - 1)), id)
        assert(ring(id, queue, bells))
      end) then
        leave_place(r)
        move(r, 'ready') -- and in no line
      end
    else
      call('ZREM', K.rung(queue), id)
      if not r then miss(id, 'rung') end
    end
  end)
end

-- A record that was lost while its job was busy took with it whose it was, and a slot: all that is busy is counted anew.
-- This once, all of it at a time: it is rare, and counts that change meanwhile would be wrong again.
if call('DEL', K.miscounted()) == 1 then
  local busy = {}
  -- Answers how many of them are suspects.
  local function count(ids, place)
    local suspected = 0
    for _, id in ipairs(ids) do
      local r = read(id)
      if r and level(r) then suspected = suspected + 1 end
      if r and r.place == place then
        for _, whose in ipairs({'t:' .. r.tenant, 'a:' .. r.agent}) do busy[whose] = (busy[whose] or 0) + 1 end
      end
    end
    return suspected
  end
  for _, where in ipairs(call('HKEYS', K.picks())) do
    for _, queue in ipairs({where, suspects_of(where)}) do count(call('ZRANGE', K.rung(queue), 0, -1), 'rung') end
  end
  for _, workers in ipairs({K.workers(), K.dying()}) do
    for _, worker in ipairs(call('ZRANGE', workers, 0, -1)) do
      local ids = call('SMEMBERS', K.held(worker))
      local suspected = count(ids, 'running')
      if of_worker(worker, 'running') then
        call('HSET', K.worker(worker), 'running', #ids, 'suspects', suspected)
        if suspected == 0 then call('HDEL', K.worker(worker), 'company') end
      end
    end
  end
  call('DEL', K.busy())
  for whose, number in pairs(busy) do call('HSET', K.busy(), whose, number) end
  call('DEL', K.recount())
end

if not stands(K.recount(), a.lease) then
  call('SET', K.recount(), '1', 'PX', a.lease)
  local totals = {}
  for _, worker in ipairs(call('ZRANGE', K.workers(), 0, -1)) do
    local group, free = offer(worker)
    if group then totals[group] = (totals[group] or 0) + free end
  end
  call('DEL', K.free())
  for group, free in pairs(totals) do call('HSET', K.free(), group, free) end
  for _, tenant in ipairs(call('SMEMBERS', K.full())) do
    if not at_limit(tenant) then rejoin(tenant) end
  end
end

-- How fast jobs leave the lines of a queue while some wait there, as "count, when, jobs a second": a mean of the last half minute,
-- for those who ask when theirs will start.
local PACED = 30000
local function keep_pace(queue)
  local waiting = call('SCARD', K.lines(queue)) > 0
  for priority = 0, 2 do waiting = waiting or call('EXISTS', K.rotation(queue, priority)) == 1 end
  local known = redis.pcall('HGET', K.pace(), queue)
  if type(known) == 'table' then call('DEL', K.pace()); known = nil end
  local count, at, pace = string.match(known or '', '^(%d+) (%d+) (%S+)$')
  at, pace = tonumber(at or '') or 0, tonumber(pace or '') or 0
  if not waiting then
    if at > 0 then call('HSET', K.pace(), queue, '0 0 ' .. pace) end
    return
  end
  local passed = now - at
  if at > 0 and passed >= 0 and passed < 900 then return end
  if at > 0 and passed > 0 and passed <= PACED then
    local new = (picks(queue) - count) * 1000 / passed
    pace = pace > 0 and pace + (new - pace) * passed / PACED or new
  end
  call('HSET', K.pace(), queue, string.format('%d %.0f %.6f', picks(queue), now, math.max(0, pace)))
end

local free, looked_at, paced = call('HGETALL', K.free()), {}, {}
for i = 1, #free, 2 do
  local group, slots = free[i], tonumber(free[i + 1])
  for _, queue in ipairs(queues_of(group)) do
    if not paced[queue] then
      paced[queue] = true
      keep_pace(queue)
    end
    for bell_queue, wanted in pairs({[queue] = slots > 0, [suspects_of(queue)] = call('SCARD', K.quarantined()) > 0}) do
      -- A group without slots must not keep those that serve the same queue from hearing of it.
      if wanted and not looked_at[bell_queue] then
        looked_at[bell_queue] = true
        ring_again(bell_queue)
      end
    end
  end
  if slots > 0 then dispatch_for(group, 200, bells) end
end
sweep(200)
books.sweep_doubts(200)
local broken = call('ZRANGE', K.broken(), '(' .. (call('GET', K.alarmed()) or 0), '+inf', 'BYSCORE', 'WITHSCORES')
return {bells, broken, look_on, newest_alert}
