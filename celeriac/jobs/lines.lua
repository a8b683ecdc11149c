-- Shared by every script of the job store: places, lines, slots, dispatch. Before it stand K (keys), now (ms), a (arguments),
-- MOVES, SEEN_AS and the helpers of contexts. A job is in exactly one place; `place` in its record says which.
local call = redis.call
local MARGIN = 2            -- bells beyond the free slots: a slot that falls free finds one waiting
local PATIENCE = 3000       -- ms until a bell that nobody answered is rung again; doubles to the longest
local LONGEST_PATIENCE = 60000
local PASSED_BY = 100       -- jobs of a newer release that one dispatch looks past
local COMPANY = {[2] = 32, [3] = 4, [4] = 1} -- crashes -> how many suspects one process may hold at once
local KEPT_BROKEN = 1000
local KEPT_EVENTS = 4000    -- of a job: at five a second, more than ten minutes of text
local LANE_TURN = {1, 2, 4} -- high, normal, low: the way from one place of a tenant in a lane's line to its next
local LOOK_AROUND = 15000   -- ms after which a job that waits for a lane asks its others; doubles to the longest
local LONGEST_LOOK = 300000

-- Whether a key that is set for so many ms is there. Redis keeps the time of day at which it goes: where its clock went
-- back, one that is longer in going than it may be would stay for all of that, and counts as gone.
local function stands(key, ms)
  local left = call('PTTL', key)
  return left >= 0 and left <= ms
end

local function get(id, ...) return unpack(call('HMGET', K.job(id), ...)) end

-- What every move needs to know of a job; nil where the record is missing or makes no sense. `newer` where it stands in a
-- place that this release does not know: a newer one owns it, and here it stays where it is, in every index.
local function read(id)
  local r, values = {id = id}, redis.pcall('HMGET', K.job(id), 'place', 'queue', 'line', 'priority', 'tenant', 'seq', 'agent',
    'context', 'worker', 'nonce', 'released', 'stop', 'crashes', 'stream')
  if values.err then return nil end
  r.place, r.queue, r.line, r.priority, r.tenant, r.seq, r.agent, r.context, r.worker, r.nonce, r.released, r.stop, r.crashes,
    r.stream =
    unpack(values)
  r.crashes = tonumber(r.crashes or 0)
  if not (r.place and r.queue and r.line and tonumber(r.priority) and r.tenant and tonumber(r.seq) and r.agent
      and r.crashes) then
    return nil
  end
  r.newer = not MOVES[r.place]
  return r
end

-- A record that makes no sense is set aside, and must not keep the others from going on. Upkeep raises the alarm.
local function set_aside(id, where)
  call('ZADD', K.broken(), call('INCR', K.turn()), id .. ' in ' .. where)
  call('ZREMRANGEBYRANK', K.broken(), 0, -KEPT_BROKEN - 1)
end

-- The record of a busy job is missing or makes no sense. Whom it was counted for is not known any more: upkeep counts.
local function miss(id, where)
  if call('EXISTS', K.job(id)) == 1 then set_aside(id, where) end
  call('SET', K.miscounted(), '1')
end

-- Do the work on one record; what fails in it must not stop the work on the others either.
local function try(id, where, work)
  local done = pcall(work)
  if not done then set_aside(id, where) end
  return done
end

-- Whom a job behind its context waits for.
local function waits_for(id)
  local place, tenant, context = get(id, 'place', 'tenant', 'context')
  return place == 'behind' and context and context_holder(tenant, context) or nil
end

-- What is due in an index, about a page of it, past what a newer release owns. work: gets an id and its record (or nil), and
-- answers 'stays' where the entry keeps its time, 'stop' where no other is to be looked at. Answers whether there is more.
local function each_due(index, most, work)
  local stay, done = 0, 0
  while done < most and stay < 10 * most do
    local page = call('ZRANGEBYSCORE', index, '-inf', now, 'LIMIT', stay, most)
    for _, id in ipairs(page) do
      local r = read(id)
      if r and r.newer then stay = stay + 1
      else
        local said = work(id, r)
        if said == 'stop' then return false end
        if said == 'stays' then stay = stay + 1 end
        done = done + 1
      end
    end
    if #page < most then return false end
  end
  return done >= most
end

local function may(r, to) return not r.newer and MOVES[r.place][to] end

-- Suspects wait in lines of their own and are rung for on a queue of their own.
local function level(r) return r.crashes >= 2 and math.min(r.crashes, 4) or nil end
local function suspects_of(queue) return queue .. '.suspects' end
local function bell_queue(r) return level(r) and suspects_of(r.queue) or r.queue end

local BUSY = {rung = true, running = true}

local function limit_of(tenant)
  local own, all = unpack(call('HMGET', K.limits(), 't:' .. tenant, 't:*'))
  return tonumber(own or all or '') or math.huge
end

-- How many jobs of a tenant or an agent are busy, for a limit on them. One more where the next that falls free is kept for a
-- suspect: it is not in the lines, and would never have its turn.
local function busy_of(whose, is_suspect)
  local kept = is_suspect and 0 or call('SISMEMBER', K.kept(), whose)
  return tonumber(call('HGET', K.busy(), whose) or 0) + kept
end

local function at_limit(tenant, is_suspect)
  local limit = limit_of(tenant)
  return limit < math.huge and busy_of('t:' .. tenant, is_suspect) >= limit
end

local function agent_room(agent, is_suspect)
  local limit = tonumber(call('HGET', K.limits(), 'a:' .. agent) or '')
  return not limit or busy_of('a:' .. agent, is_suspect) < limit
end

-- A tenant below its limit takes its place in the rotations that it left, at their ends.
local function rejoin(tenant)
  if call('SREM', K.full(), tenant) == 0 then return end
  for _, entry in ipairs(call('SMEMBERS', K.left(tenant))) do
    local line, priority = string.match(entry, '^(.+)|(%d)$')
    if call('EXISTS', K.ready(line, priority, tenant)) == 1 then
      call('ZADD', K.rotation(line, priority), 'NX', call('INCR', K.turn()), tenant)
    end
  end
  call('DEL', K.left(tenant))
end

local function count_busy(r, by)
  for _, whose in ipairs({'t:' .. r.tenant, 'a:' .. r.agent}) do
    if call('HINCRBY', K.busy(), whose, by) <= 0 then call('HDEL', K.busy(), whose) end
  end
  if by < 0 and not at_limit(r.tenant) then rejoin(r.tenant) end
end

-- What those are told who read along, where somebody asked for that. A stream that is none hides no change. data: JSON.
local function tell_reader(r, kind, data)
  if not r.stream then return end
  local event = redis.pcall('XADD', K.events(r.id), 'MAXLEN', '~', KEPT_EVENTS, '*', kind, data)
  if type(event) == 'string' then call('PUBLISH', K.events(r.id), event .. ' ' .. kind .. ' ' .. data) end
end

-- Every change of place goes through here; the index by state follows what the caller sees. reason: of a parked job.
local function move(r, to, state, reason)
  assert(may(r, to), 'illegal move from ' .. r.place .. ' to ' .. to)
  local was, is = SEEN_AS[r.place], state or SEEN_AS[to]
  if BUSY[to] and not BUSY[r.place] then count_busy(r, 1)
  elseif BUSY[r.place] and not BUSY[to] then count_busy(r, -1) end
  call('HSET', K.job(r.id), 'place', to)
  if was ~= is then
    if was then call('ZREM', K.jobs_in(r.tenant, was), r.id) end
    call('ZADD', K.jobs_in(r.tenant, is), r.seq, r.id)
    tell_reader(r, 'state', '{"state":"' .. is .. (reason and '","reason":"' .. reason or '') .. '"}')
  end
  r.place = to
end

-- Into its tenant's line, and the tenant into the rotation: a new tenant at its end.
local function enter_ready(r)
  call('ZADD', K.ready(r.line, r.priority, r.tenant), r.seq, r.id)
  if r.line ~= r.queue then call('SADD', K.lines(r.queue), r.line) end
  if call('SISMEMBER', K.full(), r.tenant) == 1 then call('SADD', K.left(r.tenant), r.line .. '|' .. r.priority)
  else call('ZADD', K.rotation(r.line, r.priority), 'NX', call('INCR', K.turn()), r.tenant) end
end

local function enter_line(r)
  if level(r) then call('ZADD', K.suspects(r.queue, level(r)), r.seq, r.id) else enter_ready(r) end
end

local function leave_rotation_if_empty(line, priority, tenant)
  if call('EXISTS', K.ready(line, priority, tenant)) == 0 then call('ZREM', K.rotation(line, priority), tenant) end
end

-- Out of wherever a job waits that no worker holds. The caller moves it on.
local function leave_place(r)
  if r.place == 'ready' then
    if level(r) then call('ZREM', K.suspects(r.queue, level(r)), r.id)
    else
      call('ZREM', K.ready(r.line, r.priority, r.tenant), r.id)
      leave_rotation_if_empty(r.line, r.priority, r.tenant)
    end
  elseif r.place == 'rung' then call('ZREM', K.rung(bell_queue(r)), r.id)
  elseif r.place == 'parked' then
    local lane = get(r.id, 'lane')
    if lane then call('ZREM', K.lane_line(lane), r.id) end
    call('ZREM', K.parked(), r.id)
    call('HDEL', K.job(r.id), 'reason', 'resume_at', 'parked_for', 'lane', 'lane_input', 'lane_output')
  end
end

local function to_ready(r) move(r, 'ready'); enter_line(r) end

local function to_parked(r, reason, resume_at)
  move(r, 'parked', nil, reason)
  call('HSET', K.job(r.id), 'reason', reason, 'resume_at', resume_at)
  call('HDEL', K.job(r.id), 'lane', 'lane_input', 'lane_output')
  -- Where the clock goes back, this still says how long the job was to wait. What is scheduled is for a time of day.
  if reason ~= 'scheduled' then call('HSET', K.job(r.id), 'parked_for', resume_at - now) end
  call('ZADD', K.parked(), resume_at, r.id)
end

-- Fields of a worker; none where its record is no hash.
local function of_worker(worker, ...)
  local values = redis.pcall('HMGET', K.worker(worker), ...)
  if not values.err then return unpack(values) end
end

local function serves(group, queue) return string.find(',' .. group .. ',', ',' .. queue .. ',', 1, true) end

-- In the line of a lane that may not be asked now, as seen from here until a time, or nil where nobody knows one. Tenants take turns in it, and who comes back
-- has its old place. After a while it looks around in any case: another of its lanes may be free. lane: its name, the input and
-- output tokens that the next call may use at most, and whether it is the only one.
local function to_lane_line(r, lane, till)
  local resume_at = till or now + LONGEST_LOOK
  local input, output, only, line
  lane, input, output, only = unpack(lane)
  line = K.lane_line(lane)
  local since, waits, place = get(r.id, 'lane_since', 'lane_waits', 'lane_place')
  since, waits = tonumber(since or ''), math.min(10, tonumber(waits or '') or 0)
  local was, at = string.match(place or '', '^(%S+) (%d+)$')
  if was ~= lane then
    local first, own = redis.pcall('ZRANGE', line, 0, 0, 'WITHSCORES'), redis.pcall('HGET', K.lane_turns(lane), r.tenant)
    if first.err or type(own) == 'table' then -- no line, or no turns
      call('DEL', line, K.lane_turns(lane))
      first, own = {}, nil
    end
    local last = redis.pcall('HGET', K.lane(lane), 'last_place')
    first = tonumber(first[2] or '') or type(last) == 'string' and tonumber(last) or 0
    at = math.max(first, tonumber(own or '') or 0) + LANE_TURN[r.priority + 1]
    at = string.format('%.0f', at)
    call('HSET', K.lane_turns(lane), r.tenant, at)
  end
  -- A scope's line is one among those of lanes.
  local reason = string.sub(lane, 1, 1) == '$' and 'waiting_budget' or 'lane_closed'
  -- Windows end with a second.
  if reason == 'waiting_budget' then resume_at = math.floor(resume_at / 1000 + 0.5) * 1000 end
  move(r, 'parked', nil, reason)
  if till then call('HSET', K.job(r.id), 'resume_at', resume_at) end
  call('HSET', K.job(r.id), 'reason', reason, 'lane', lane, 'lane_input', input,
    'lane_output', output, 'lane_since', since or now, 'lane_waits', waits + 1, 'lane_place', lane .. ' ' .. at)
  call('HDEL', K.job(r.id), 'woken')
  call('ZADD', line, at, r.id)
  -- Who has no other lane has nothing to ask before.
  local look = only and math.max(resume_at - now, LONGEST_LOOK) or math.min(LONGEST_LOOK, LOOK_AROUND * 2 ^ waits)
  -- Thousands may wait for the same midnight, and are woken as there is room: that they look for themselves is for the worst.
  if reason == 'waiting_budget' and only then look = math.max(resume_at - now, LONGEST_LOOK) + r.seq % 3600 * 1000 end
  call('HSET', K.job(r.id), 'parked_for', look)
  call('ZADD', K.parked(), now + look, r.id)
  if type(redis.pcall('SADD', K.lanes(), lane)) == 'table' then
    call('DEL', K.lanes())
    call('SADD', K.lanes(), lane)
  end
end

-- The oldest job of the tenant whose turn it is, which goes to the end. A tenant at its limit leaves the rotation.
local function next_of(line, priority)
  local rotation = K.rotation(line, priority)
  for _ = 1, 100 do
    local tenant = call('ZRANGE', rotation, 0, 0)[1]
    if not tenant then return nil end
    if at_limit(tenant) then
      call('ZREM', rotation, tenant)
      call('SADD', K.full(), tenant)
      call('SADD', K.left(tenant), line .. '|' .. priority)
    else
      local id = call('ZPOPMIN', K.ready(line, priority, tenant))[1]
      if call('EXISTS', K.ready(line, priority, tenant)) == 0 then call('ZREM', rotation, tenant)
      else call('ZADD', rotation, call('INCR', K.turn()), tenant) end
      if id then return id end
    end
  end
end

-- The lines of a queue in turn: its own, and one for each agent with a limit that has jobs and room.
local function lines_of(queue, turn)
  local limited = call('SMEMBERS', K.lines(queue))
  if #limited == 0 then return {queue} end
  local lines, turned = {queue}, {}
  table.sort(limited)
  for _, line in ipairs(limited) do
    local used = false
    for priority = 0, 2 do used = used or call('EXISTS', K.rotation(line, priority)) == 1 end
    if not used then
      -- Its jobs may belong to tenants at their limit, who left the rotation and will be back.
      if call('SCARD', K.full()) == 0 then call('SREM', K.lines(queue), line) end
    elseif agent_room(string.sub(line, #queue + 2)) then lines[#lines + 1] = line end
  end
  for i = 1, #lines do turned[i] = lines[(turn + i) % #lines + 1] end
  return turned
end

-- How often something was chosen here. Each who takes turns counts for itself: in a counter that others move too, their
-- steps may be such that one never has its turn.
local function picks(where) return tonumber(call('HGET', K.picks(), where) or 0) end
local function picked(where) call('HINCRBY', K.picks(), where, 1) end

-- High before normal before low, but one dispatch in ten begins from below, so that nothing starves.
local function next_ready(queue)
  local turn = picks(queue) + 1
  local from, to, step = 0, 2, 1
  local below = turn % 10 == 0
  if below then from, to, step = 2, 0, -1 end
  local lines = lines_of(queue, below and turn / 10 or turn)
  for priority = from, to, step do
    for _, line in ipairs(lines) do
      local id = next_of(line, priority)
      if id then
        picked(queue)
        return id
      end
    end
  end
end

local function queues_of(group)
  local queues = {}
  for queue in string.gmatch(group, '[^,]+') do queues[#queues + 1] = queue end
  return queues
end

-- How many more bells a queue can use: for each group of workers that serves it, its free slots and a margin, less the
-- bells that are out for the group. No slots, no bells.
local function room(queue)
  local total, free = 0, call('HGETALL', K.free())
  for i = 1, #free, 2 do
    local slots = tonumber(free[i + 1])
    if slots > 0 and serves(free[i], queue) then
      local left = slots + MARGIN
      for _, other in ipairs(queues_of(free[i])) do left = left - call('ZCARD', K.rung(other)) end
      if left > 0 then total = total + left end
    end
  end
  return total
end

-- What Celery hangs on a job that came over HTTP: nothing. JSON inside a JSON text.
local NO_CANVAS = [[{\"callbacks\": null, \"errbacks\": null, \"chain\": null, \"chord\": null}]]

-- What a bell says of its job; nil where the record makes no sense.
local function bell_of(id)
  local retries, ignore, canvas = get(id, 'retries', 'ignore_result', 'canvas')
  local fill = {ROOT = '"' .. id .. '"', PARENT = 'null', GROUP = 'null', INDEX = 'null', EMBED = NO_CANVAS}
  if canvas then
    local read, own = pcall(cjson.decode, canvas)
    if not read or type(own) ~= 'table' then return nil end
    for name in pairs(fill) do
      if type(own[name]) ~= 'string' then return nil end
      fill[name] = own[name]
    end
  end
  fill.JOB, fill.RETRIES, fill.IGNORE = id, retries or '0', ignore == 'false' and 'false' or 'true'
  if not string.match(fill.RETRIES, '^%d+$') then return nil end
  return fill, canvas or nil
end

-- One bell: Celery's own message pushed into the broker's list, where the broker is this Redis; else the caller publishes.
-- False where the record makes no sense.
local function ring(id, queue, bells)
  local fill, canvas = bell_of(id)
  if not fill then return false end
  local template = call('GET', K.bell(queue))
  if template then
    fill.TAG = id .. '.' .. call('INCR', K.turn())
    call('LPUSH', queue, (string.gsub(template, '@(%u+)@', fill)))
  else
    bells[#bells + 1] = {queue, id, fill.RETRIES, fill.IGNORE, canvas}
  end
  return true
end

-- Answers whether it was rung for; out of its line it is in any case.
local function ring_first(r, where, bells)
  if not ring(r.id, bell_queue(r), bells) then set_aside(r.id, where); return false end
  move(r, 'rung')
  call('HSET', K.job(r.id), 'rings', 1)
  call('ZADD', K.rung(bell_queue(r)), now + PATIENCE, r.id)
  return true
end

-- Bells for free slots only, at most `most`; collects in `bells` what the caller has to publish. Answers how many it rang.
local function dispatch(queue, most, bells)
  most = math.min(most, room(queue))
  local rung, passed_by = 0, {}
  while rung < most and #passed_by < PASSED_BY do
    local id = next_ready(queue)
    if not id then break end
    local r = read(id)
    if r and may(r, 'rung') then
      if ring_first(r, 'ready', bells) then rung = rung + 1 end
    elseif not r then set_aside(id, 'ready')
    elseif r.newer then passed_by[#passed_by + 1] = r end
  end
  for _, r in ipairs(passed_by) do enter_ready(r) end
  return rung
end

-- What a worker adds to its group's free slots. A draining or quarantined worker adds nothing, and takes nothing from the
-- others.
local function offer(worker)
  local group, slots, running, taking, quarantine =
    of_worker(worker, 'queues', 'slots', 'running', 'taking', 'quarantine')
  if not group then return nil, 0 end
  slots, running = tonumber(slots or ''), tonumber(running or '')
  return group, taking == '1' and not quarantine and slots and running and math.max(0, slots - running) or 0
end

-- Change a worker's record and carry the difference over to its group.
local function change_worker(worker, change)
  local group, before = offer(worker)
  change()
  local new_group, after = offer(worker)
  if group and group ~= new_group then call('HINCRBY', K.free(), group, -before); before = 0 end
  if new_group then call('HINCRBY', K.free(), new_group, after - before) end
end

-- How many more suspects of this level a quarantined worker may take: none while it still runs others.
local function suspects_room(worker, lvl)
  local slots, running, held, company, taking =
    of_worker(worker, 'slots', 'running', 'suspects', 'company', 'taking')
  held = tonumber(held or 0)
  if not slots or taking ~= '1' or tonumber(running) > held then return 0 end
  return math.min(COMPANY[lvl], tonumber(company or COMPANY[2]), tonumber(slots)) - held
end

-- Bells for suspects: only for quarantined workers, and only as many as may share a process. The least suspect first.
local function dispatch_suspects(queue, bells)
  if call('SCARD', K.quarantined()) == 0 then return end
  local out = call('ZCARD', K.rung(suspects_of(queue)))
  for lvl = 2, 4 do
    if call('EXISTS', K.suspects(queue, lvl)) == 1 then
      local left, rung = -out, 0
      for _, worker in ipairs(call('SMEMBERS', K.quarantined())) do
        local group = call('HGET', K.worker(worker), 'queues')
        if group and serves(group, queue) then left = left + math.max(0, suspects_room(worker, lvl)) end
      end
      if left <= 0 then return end
      for _, id in ipairs(call('ZRANGE', K.suspects(queue, lvl), 0, 199)) do
        if left <= 0 then break end
        local r = read(id)
        if r and r.newer then -- passed by
        elseif not (r and may(r, 'rung')) then
          call('ZREM', K.suspects(queue, lvl), id)
          if not r then set_aside(id, 'suspects') end
        elseif not at_limit(r.tenant, true) and agent_room(r.agent, true) then
          call('ZREM', K.suspects(queue, lvl), id)
          if ring_first(r, 'suspects', bells) then left, rung = left - 1, rung + 1 end
        end
      end
      -- One level at a time: company is what the most suspect of them allows. The next where limits hold all of these.
      if rung > 0 then return end
    end
  end
end

local function take_slot(r)
  call('SADD', K.held(r.worker), r.id)
  change_worker(r.worker, function()
    call('HINCRBY', K.worker(r.worker), 'running', 1)
    call('HINCRBY', K.worker(r.worker), 'writes', 1)
    if level(r) then
      call('HINCRBY', K.worker(r.worker), 'suspects', 1)
      local company = tonumber(call('HGET', K.worker(r.worker), 'company') or COMPANY[2])
      call('HSET', K.worker(r.worker), 'company', math.min(company, COMPANY[level(r)]))
    end
  end)
end

-- What the workers of this group could take next, its queues in turn: else the second queue starves.
local function dispatch_for(group, most, bells)
  local queues = queues_of(group)
  for _, queue in ipairs(queues) do dispatch_suspects(queue, bells) end
  if #queues == 1 then dispatch(queues[1], most, bells); return end
  local turn, idle, before = picks(group), 0, most
  while most > 0 and idle < #queues do
    turn = turn + 1
    local rung = dispatch(queues[turn % #queues + 1], 1, bells)
    most = most - rung
    idle = rung == 0 and idle + 1 or 0
  end
  if most < before then picked(group) end
end
