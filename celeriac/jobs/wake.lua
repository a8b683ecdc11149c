-- Wake: jobs that wait for a lane which may be asked again are ready, in their order, and no more of them than its rates, the
-- free slots and the limits of their tenants and agents let through now; where it is still to be tried out, one. a: page.
-- Answers {1 if there may be more}.
local more, left = 0, {}

-- How many more may be woken of a queue, a tenant, an agent. Those in the tenant's line go before them.
local function has_room(r)
  local busy = call('ZCARD', K.ready(r.line, r.priority, r.tenant))
  local limit = tonumber(call('HGET', K.limits(), 'a:' .. r.agent) or '') or math.huge
  local rooms = {['q:' .. r.queue] = room, ['t:' .. r.tenant] = limit_of, ['a:' .. r.agent] = function() return limit end}
  for whose, of in pairs(rooms) do
    if not left[whose] then
      left[whose] = of(string.sub(whose, 3))
      if of ~= room then left[whose] = left[whose] - busy_of(whose) - busy end
    end
    if left[whose] <= 0 then return false end
  end
  for whose in pairs(rooms) do left[whose] = left[whose] - 1 end
  return true
end

-- Answers "woken", "passed" (its turn comes another time) or "short" (and so are those behind it).
local function wake(lane, id, tried)
  local r = read(id)
  if r and r.newer then return 'passed' end
  if not (r and r.place == 'parked') then
    call('ZREM', K.lane_line(lane), id)
    if not r then set_aside(id, 'lane') end
    return 'passed'
  end
  if not has_room(r) then return 'passed' end
  local input, output = get(id, 'lane_input', 'lane_output')
  local need = lane_need(lane, number(input), number(output))
  if not tried and lane_take(lane, need) then return 'short' end
  local done = try(id, 'lane', function()
    leave_place(r)
    if not tried then call('HSET', K.job(id), 'ticket', lane .. ' ' .. now .. ' ' .. need.input .. ' ' .. need.output) end
    to_ready(r)
  end)
  if not done then call('ZREM', K.lane_line(lane), id) end
  return 'woken'
end

local function wake_all(lane)
  local line = K.lane_line(lane)
  local tried = number(of_lane(lane, 'opened')) > 0
  local page, woken = call('ZRANGE', line, 0, a.page - 1), 0
  for _, id in ipairs(page) do
    local said = wake(lane, id, tried)
    if said == 'woken' then woken = woken + 1 end
    if said == 'short' or said == 'woken' and tried then return end
  end
  if #page == a.page and woken > 0 then more = 1 end
end

for _, lane in ipairs(call('SMEMBERS', K.lanes())) do
  -- One of which nonsense is stored keeps no other from being looked at.
  local done = pcall(function()
    if not lane_closed(lane) then wake_all(lane) end
    if call('EXISTS', K.lane_line(lane)) == 0 then
      call('SREM', K.lanes(), lane)
      call('DEL', K.lane_turns(lane))
    end
  end)
  if not done then
    set_aside(lane, 'lanes')
    call('DEL', K.lane_line(lane), K.lane_turns(lane))
    call('SREM', K.lanes(), lane)
  end
end
return {more}
