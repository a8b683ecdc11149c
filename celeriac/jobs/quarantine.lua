-- Quarantine: where suspects wait, a few of a group's workers run them and nothing else, until none is left. A suspect that a
-- limit holds back keeps no worker waiting: it is kept the next job at once that falls free of its tenant or agent.
-- Answers bells to publish.
local SILENT = 2000 -- ms, and at least a tenth of a lease: so long a worker may say nothing and still be a place for suspects
local LATE = 1500 -- ms: one whose heartbeat is overdue may be dead, and is chosen only where no other is
local LOOKED_AT = 200 -- suspects of each level
local bells, kept = {}, {}

-- Suspects of a level that may be rung, as far as limits go.
local function free_to_go(queue, lvl)
  local all, page, free = call('ZCARD', K.suspects(queue, lvl)), {}, 0
  if all > 0 then page = call('ZRANGE', K.suspects(queue, lvl), 0, LOOKED_AT - 1) end
  for _, id in ipairs(page) do
    local r = read(id)
    if r and not r.newer then
      local tenant, agent = at_limit(r.tenant, true), not agent_room(r.agent, true)
      -- Until it is rung for: what falls free before a worker is ready for it would else go to others.
      if limit_of(r.tenant) < math.huge then kept['t:' .. r.tenant] = true end
      if call('HEXISTS', K.limits(), 'a:' .. r.agent) == 1 then kept['a:' .. r.agent] = true end
      if not tenant and not agent then free = free + 1 end
    else free = free + 1 end -- whoever dispatches sees to it
  end
  return #page > 0 and math.ceil(all * free / #page) or 0
end

local function suspects_in(group)
  local waiting, out = 0, 0
  for _, queue in ipairs(queues_of(group)) do
    for lvl = 2, 4 do waiting = waiting + free_to_go(queue, lvl) end
    out = out + call('ZCARD', K.rung(suspects_of(queue)))
  end
  return waiting, out
end

local function release(worker)
  change_worker(worker, function() call('HDEL', K.worker(worker), 'quarantine', 'company') end)
  call('SREM', K.quarantined(), worker)
end

local groups, in_quarantine = {}, {}
for _, worker in ipairs(call('SMEMBERS', K.quarantined())) do in_quarantine[worker] = true end
for _, worker in ipairs(call('ZRANGE', K.workers(), 0, -1)) do
  local group, running, taking, suspects, lease =
    of_worker(worker, 'queues', 'running', 'taking', 'suspects', 'lease')
  -- One that says nothing may be dead: suspects are not to wait for its lease to end.
  local heard = tonumber(lease or '') and tonumber(call('ZSCORE', K.workers(), worker)) - lease
  local silent = heard and now - heard or 0
  if silent > math.max(SILENT, (tonumber(lease or '') or 0) / 10) then taking = '0' end
  if group then
    local g = groups[group] or {all = 0, quarantined = 0, spare = {}, idlest = nil}
    groups[group] = g
    if taking == '1' then g.all = g.all + 1 end
    if in_quarantine[worker] then
      if not g.waiting then g.waiting, g.out = suspects_in(group) end
      local without = tonumber(suspects or 0) == 0
      if g.waiting + g.out == 0 and without then release(worker)
      elseif taking == '1' then -- one that takes no bells is no place for suspects: another is needed
        g.quarantined = g.quarantined + 1
        if without then g.spare[#g.spare + 1] = {name = worker, others = tonumber(running or '') or 0} end
      end
    elseif taking == '1' then
      local late, busy = silent > LATE, tonumber(running)
      if not g.idlest or (g.late and not late) or (g.late == late and busy < g.least) then
        g.idlest, g.least, g.late = worker, busy, late
      end
    end
  end
end
for group, g in pairs(groups) do
  if not g.waiting then g.waiting, g.out = suspects_in(group) end
  -- One, and where there are many of both up to a quarter of the workers.
  -- Those whose bell is out count: the worker that it was meant for may be gone.
  local all = g.waiting + g.out
  local wanted = all == 0 and 0 or math.max(1, math.min(math.ceil(all / COMPANY[2]), math.floor(g.all / 4)))
  if g.quarantined < wanted and g.idlest then
    change_worker(g.idlest, function() call('HSET', K.worker(g.idlest), 'quarantine', now) end)
    call('SADD', K.quarantined(), g.idlest)
  end
  -- One that was silent is back, or fewer are wanted: first goes who would still have to wait for its other jobs to end.
  table.sort(g.spare, function(a, b) return a.others > b.others or a.others == b.others and a.name < b.name end)
  for i = 1, math.min(#g.spare, g.quarantined - wanted) do release(g.spare[i].name) end
  if g.waiting > 0 then
    for _, queue in ipairs(queues_of(group)) do dispatch_suspects(queue, bells) end
  end
end
for _, whose in ipairs(call('SMEMBERS', K.kept())) do
  if not kept[whose] then
    call('SREM', K.kept(), whose)
    local tenant = string.match(whose, '^t:(.*)$')
    if tenant and not at_limit(tenant) then rejoin(tenant) end
  end
end
for whose in pairs(kept) do call('SADD', K.kept(), whose) end
return bells
