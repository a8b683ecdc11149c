-- Wake: jobs that wait for a lane which may be asked again are ready, in their order, and no more of them than its rates let
-- through now, than there are slots, and than the limits of their tenants and agents allow; where it is still to be tried out,
-- one. One lane, and one page of its line. a: after (the lane that was looked at before; "" to begin), page.
-- Answers {the lane that was looked at, or "" after the last one; "woken", "passed" where the whole page was passed over, or ""
-- where there is nothing more to be done for it now}.
local TRIED = 5000 -- ms after which another one is woken, if the first did not come to try the lane out

local lane
for _, name in ipairs(call('SMEMBERS', K.lanes())) do
  if name > a.after and (not lane or name < lane) then lane = name end
end
if not lane then return {'', ''} end

-- How many more may be woken of a queue, a tenant, an agent: those that were woken before and have made no call yet count. Not the
-- slots that are free just now: while others are ready too, none is, and nobody would be woken.
local left = {}
local function has_room(r)
  local all = wakes_of(r)
  for _, wakes in ipairs(all) do
    local kind, name, most = unpack(wakes)
    wakes.whose = kind .. name
    left[wakes.whose] = left[wakes.whose] or most(name) - woken_of(kind, name)
    if left[wakes.whose] <= 0 then return false end
  end
  for _, wakes in ipairs(all) do left[wakes.whose] = left[wakes.whose] - 1 end
  return true
end

-- Answers "woken", "passed" (its turn comes another time), "gone" or "short" (and so are those behind it).
local function wake(id, tried)
  local r = read(id)
  if r and r.newer then return 'passed' end
  if not (r and r.place == 'parked') then
    call('ZREM', K.lane_line(lane), id)
    if not r then set_aside(id, 'lane') end
    return 'gone'
  end
  if not has_room(r) then return 'passed' end
  local input, output = get(id, 'lane_input', 'lane_output')
  local need = lane_need(lane, number(input), number(output))
  if not tried and lane_take(lane, need) then return 'short' end
  local done = try(id, 'lane', function()
    leave_place(r)
    if not tried then
      call('HSET', K.job(id), 'ticket', string.format('%s %.0f %.0f %.0f', lane, now, need.input, need.output))
    end
    woken(r)
    to_ready(r)
  end)
  if not done then call('ZREM', K.lane_line(lane), id) end
  return 'woken'
end

local function wake_page()
  local line, tried = K.lane_line(lane), number(of_lane(lane, 'opened')) > 0
  local since = now - number(of_lane(lane, 'tried'))
  if tried and since >= 0 and since < TRIED then return '' end
  -- Those that were passed over are not looked at again and again, while those behind them wait.
  local from = number(of_lane(lane, 'passed'))
  local page = call('ZRANGE', line, from, from + a.page - 1)
  local passed, some = 0, false
  for _, id in ipairs(page) do
    local said = wake(id, tried)
    if said == 'short' then
      lane_set(lane, 'passed', 0)
      return ''
    end
    if said == 'woken' and tried then
      lane_set(lane, 'tried', now, 'passed', 0)
      return ''
    end
    if said == 'passed' then passed = passed + 1 end
    some = some or said == 'woken'
  end
  local more = #page == a.page
  if more or from > 0 then lane_set(lane, 'passed', more and string.format('%.0f', from + passed) or 0) end
  return more and (some and 'woken' or 'passed') or ''
end

-- One of which nonsense is stored keeps no other from being looked at.
local done, said = pcall(function()
  local more = not lane_closed(lane) and wake_page() or ''
  if call('EXISTS', K.lane_line(lane)) == 0 then
    call('SREM', K.lanes(), lane)
    call('DEL', K.lane_turns(lane))
  end
  return more
end)
if not done then
  set_aside(lane, 'lanes')
  call('DEL', K.lane_line(lane), K.lane_turns(lane))
  call('SREM', K.lanes(), lane)
end
return {lane, done and said or ''}
