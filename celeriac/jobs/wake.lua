-- Wake: the first jobs that wait for a lane which may be asked again are ready, in their order: as many as its rates let through,
-- and no more than a few times as many as there are slots, have been woken just now and have not called yet; where it is still
-- to be tried out, one. From then on they wait like any that are ready: bells are rung for free slots alone.
-- a: lane, page. The lane may have no line any more.
local TRIED = 5000 -- ms after which another one is woken, if the first did not come to try the lane out

local lane = a.lane
if redis.pcall('SISMEMBER', K.lanes(), lane) ~= 1 then return end

-- Of the workers that take jobs: looked at only where somebody may be woken, since most lanes with a line are closed.
local slots, groups = 0, {}
local function look_at_workers()
  for _, worker in ipairs(call('ZRANGEBYSCORE', K.workers(), now, '+inf')) do
    local group, own, taking = of_worker(worker, 'queues', 'slots', 'taking')
    if group and taking == '1' then
      slots = slots + number(own)
      groups[group] = true
    end
  end
end

local function is_served(queue)
  for group in pairs(groups) do
    if serves(group, queue) then return true end
  end
end

-- Answers whether it was woken and may call soon: not one that is a newer release's to wake, that is not there, or whose queue
-- nobody serves.
local function wake(id, need)
  local r = read(id)
  if r and r.newer then return false end
  if not (r and r.place == 'parked') then
    call('ZREM', K.lane_line(lane), id)
    if not r then set_aside(id, 'lane') end
    return false
  end
  local done = try(id, 'lane', function()
    leave_place(r)
    call('HSET', K.job(id), 'woken', string.format('%s %.0f %.0f %.0f', lane, now, need.input, need.output))
    to_ready(r)
  end)
  if not done then call('ZREM', K.lane_line(lane), id) end
  return done and is_served(r.queue)
end

local function wake_page()
  local tried, since = lane_is_tried(lane), now - number(of_lane(lane, 'tried'))
  if tried and since >= 0 and since < TRIED then return end
  look_at_workers()
  -- As many as these slots may take until the next look, calls being short.
  local left = tried and 1 or 4 * (slots + MARGIN) - lane_promised(lane).requests
  for _, id in ipairs(call('ZRANGE', K.lane_line(lane), 0, a.page - 1)) do
    if left <= 0 then return end
    local asks = redis.pcall('HMGET', K.job(id), 'lane_input', 'lane_output')
    local need = lane_need(lane, number(asks[1]), number(asks[2]))
    if not tried and lane_short(lane, need) then return end
    if wake(id, need) then
      left = left - 1
      if tried then lane_set(lane, 'tried', now) else lane_promise(lane, now, need, 1) end
    end
  end
end

-- One of which nonsense is stored keeps no other from being looked at.
local scope = string.match(lane, '^%' .. books.LINE .. '(.+)$')
local done = pcall(function()
  if scope then books.wake_scope(scope, a.page)
  elseif not lane_closed(lane) then wake_page() end
  if call('EXISTS', K.lane_line(lane)) == 0 then
    -- Who comes back has a place from before, and others are counted on from there.
    local last = 0
    for _, place in ipairs(call('HVALS', K.lane_turns(lane))) do last = math.max(last, number(place)) end
    lane_set(lane, 'last_place', string.format('%.0f', last))
    call('SREM', K.lanes(), lane)
    call('DEL', K.lane_turns(lane))
  end
end)
-- What is wrong with the sums of a scope is no fault of those who wait for it.
local is_line = scope and type(redis.pcall('ZCARD', K.lane_line(lane))) == 'number'
if not done and not is_line then
  set_aside(lane, 'lanes')
  call('DEL', K.lane_line(lane), K.lane_turns(lane))
  call('SREM', K.lanes(), lane)
end
