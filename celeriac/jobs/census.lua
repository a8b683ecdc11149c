-- Census: how many jobs there are, by state and by queue, but for those that stand in lines of tenants or contexts. It changes
-- nothing; what makes no sense is not counted.
-- a: queues (to be told of beside those that workers serve or have served), most (jobs that are looked at one by one, to see
-- whose they are: so many of those that are due, and so many of those that workers of several queues run).
-- Answers {parked, {state, ended so since the first one, ...}, {line of tenants, ...}, {queue, suspects that are ready, rung, running,
-- due}, ...}; of the queue "" are those that were not looked at.
local READY, RUNG, RUNNING, DUE = 2, 3, 4, 5
local found, queues, lines = {}, {}, {}

local function number_of(...)
  local value = redis.pcall(...)
  return type(value) == 'number' and value or 0
end

local function members_of(...)
  local value = redis.pcall(...)
  return type(value) == 'table' and not value.err and value or {}
end

local function of(queue)
  if not queues[queue] then
    queues[queue] = {queue, 0, 0, 0, 0}
    found[#found + 1] = queues[queue]
  end
  return queues[queue]
end

local function add(queue, what, number) of(queue)[what] = of(queue)[what] + number end

for _, queue in ipairs(a.queues) do of(queue) end
for _, groups in ipairs({K.picks(), K.free()}) do
  for _, group in ipairs(members_of('HKEYS', groups)) do
    for _, queue in ipairs(queues_of(group)) do of(queue) end
  end
end

for i = 1, #found do
  local queue = found[i][1]
  for lvl = 2, 4 do add(queue, READY, number_of('ZCARD', K.suspects(queue, lvl))) end
  add(queue, RUNG, number_of('ZCARD', K.rung(queue)) + number_of('ZCARD', K.rung(suspects_of(queue))))
  lines[#lines + 1] = queue
  for _, line in ipairs(members_of('SMEMBERS', K.lines(queue))) do lines[#lines + 1] = line end
end

-- Answers how many more may be looked at.
local function add_each(ids, what, most)
  for i, id in ipairs(ids) do
    local queue = i <= most and redis.pcall('HGET', K.job(id), 'queue')
    add(type(queue) == 'string' and queue or '', what, 1)
  end
  return math.max(0, most - #ids)
end
local seen, left = {}, a.most
for _, where in ipairs({K.workers(), K.dying()}) do
  for _, worker in ipairs(members_of('ZRANGE', where, 0, -1)) do
    if not seen[worker] then
      seen[worker] = true
      local serves_queues = queues_of((of_worker(worker, 'queues')) or '')
      if #serves_queues == 1 then add(serves_queues[1], RUNNING, number_of('SCARD', K.held(worker)))
      elseif left > 0 then left = add_each(members_of('SMEMBERS', K.held(worker)), RUNNING, left)
      else
        local others = number_of('SCARD', K.held(worker))
        if others > 0 then add('', RUNNING, others) end
      end
    end
  end
end
local due = members_of('ZRANGEBYSCORE', K.parked(), '-inf', now, 'LIMIT', 0, a.most)
add_each(due, DUE, a.most)
local others = number_of('ZCOUNT', K.parked(), '-inf', now) - #due
if others > 0 then add('', DUE, others) end
return {number_of('ZCARD', K.parked()), members_of('HGETALL', K.ends()), lines, unpack(found)}
