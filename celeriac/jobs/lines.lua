-- Shared by every script of the job store: moves, lines, slots, dispatch. Before it stand K (keys), now (ms), a (arguments),
-- MOVES, SEEN_AS and the helpers of contexts. A job is in exactly one place; `place` in its record says which.
local call = redis.call
local MARGIN = 2            -- bells beyond the free slots: a slot that falls free finds one waiting
local PATIENCE = 3000       -- ms until a bell that nobody answered is rung again; doubles to a minute

local function get(id, ...) return unpack(call('HMGET', K.job(id), ...)) end

-- What every move needs to know of a job; nil where the record is missing or makes no sense.
local function read(id)
  local r = {id = id}
  r.place, r.queue, r.priority, r.tenant, r.seq, r.context, r.worker, r.nonce, r.released =
    get(id, 'place', 'queue', 'priority', 'tenant', 'seq', 'context', 'worker', 'nonce', 'released')
  if not (r.place and MOVES[r.place] and r.queue and r.priority and r.tenant and tonumber(r.seq)) then return nil end
  return r
end

-- Whom a job behind its context waits for.
local function waits_for(id)
  local place, tenant, context = get(id, 'place', 'tenant', 'context')
  return place == 'behind' and context and context_holder(tenant, context) or nil
end

local function may(r, to) return MOVES[r.place][to] end

-- Every change of place goes through here; the index by state follows what the caller sees.
local function move(r, to, state)
  assert(may(r, to), 'illegal move from ' .. r.place .. ' to ' .. to)
  local was, is = SEEN_AS[r.place], state or SEEN_AS[to]
  call('HSET', K.job(r.id), 'place', to)
  if was ~= is then
    if was then call('ZREM', K.jobs_in(r.tenant, was), r.id) end
    call('ZADD', K.jobs_in(r.tenant, is), r.seq, r.id)
  end
  r.place = to
end

-- Into its tenant's line, and the tenant into the rotation: a new tenant at its end.
local function enter_line(r)
  call('ZADD', K.ready(r.queue, r.priority, r.tenant), r.seq, r.id)
  call('ZADD', K.rotation(r.queue, r.priority), 'NX', call('INCR', K.turn()), r.tenant)
end

local function to_ready(r) move(r, 'ready'); enter_line(r) end

-- The tenant whose turn it is gives its oldest job and goes to the end. High before normal before low, but one dispatch
-- in ten begins from below, so that nothing starves.
local function next_ready(queue)
  local from, to, step = 0, 2, 1
  if call('INCR', K.turn()) % 10 == 0 then from, to, step = 2, 0, -1 end
  for priority = from, to, step do
    local rotation = K.rotation(queue, priority)
    local tenant = call('ZRANGE', rotation, 0, 0)[1]
    if tenant then
      local line = K.ready(queue, priority, tenant)
      local id = call('ZPOPMIN', line)[1]
      if call('EXISTS', line) == 0 then call('ZREM', rotation, tenant)
      else call('ZADD', rotation, call('INCR', K.turn()), tenant) end
      return id
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
    if slots > 0 and string.find(',' .. free[i] .. ',', ',' .. queue .. ',', 1, true) then
      local left = slots + MARGIN
      for _, other in ipairs(queues_of(free[i])) do left = left - call('ZCARD', K.rung(other)) end
      if left > 0 then total = total + left end
    end
  end
  return total
end

-- One bell: Celery's own message pushed into the broker's list, where the broker is this Redis; else the caller publishes.
local function ring(id, queue, template, bells)
  local retries, ignore = get(id, 'retries', 'ignore_result')
  if template then
    local bell = string.gsub(template, '@(%u+)@', {
      JOB = id, TAG = id .. '.' .. call('INCR', K.turn()), RETRIES = retries or '0', IGNORE = ignore or 'true'})
    call('LPUSH', queue, bell)
  else
    bells[#bells + 1] = {queue, id, retries or '0', ignore or 'true'}
  end
end

-- Bells for free slots only, at most `most`; collects in `bells` what the caller has to publish. Answers how many it rang.
local function dispatch(queue, most, bells)
  most = math.min(most, room(queue))
  if most <= 0 then return 0 end
  local rung = 0
  local template = call('GET', K.bell(queue))
  for _ = 1, most do
    local id = next_ready(queue)
    if not id then break end
    local r = read(id)
    if r and may(r, 'rung') then
      move(r, 'rung')
      call('HSET', K.job(id), 'rings', 1)
      call('ZADD', K.rung(queue), now + PATIENCE, id)
      ring(id, queue, template, bells)
      rung = rung + 1
    end
  end
  return rung
end

-- What a worker adds to its group's free slots. A draining worker adds nothing, and takes nothing from the others.
local function offer(worker)
  local group, slots, running, taking = unpack(call('HMGET', K.worker(worker), 'queues', 'slots', 'running', 'taking'))
  if not group then return nil, 0 end
  return group, taking == '1' and math.max(0, tonumber(slots) - tonumber(running)) or 0
end

-- Change a worker's record and carry the difference over to its group.
local function change_worker(worker, change)
  local group, before = offer(worker)
  change()
  local new_group, after = offer(worker)
  if group and group ~= new_group then call('HINCRBY', K.free(), group, -before); before = 0 end
  if new_group then call('HINCRBY', K.free(), new_group, after - before) end
end

local function take_slot(r)
  call('SADD', K.held(r.worker), r.id)
  change_worker(r.worker, function() call('HINCRBY', K.worker(r.worker), 'running', 1) end)
end

-- The run lets go: its slot is free, its fence is void, and the same request again gets the same answer.
local function release(r, op, answer)
  if call('SREM', K.held(r.worker), r.id) == 1 and call('EXISTS', K.worker(r.worker)) == 1 then
    change_worker(r.worker, function() call('HINCRBY', K.worker(r.worker), 'running', -1) end)
  end
  call('HDEL', K.job(r.id), 'worker', 'nonce')
  call('HSET', K.job(r.id), 'released', op .. ' ' .. r.worker .. ' ' .. r.nonce, 'release_answer', answer)
end

-- "mine", "again" (this very release was done, its answer was lost) or "fenced".
local function fence(r, op, worker, nonce)
  if not r then return 'fenced' end
  if r.place == 'running' and r.worker == worker and r.nonce == nonce then return 'mine' end
  if r.released == op .. ' ' .. worker .. ' ' .. nonce then return 'again' end
  return 'fenced'
end

-- What the workers of this group could take next, its queues in turn: else the second queue starves.
local function dispatch_for(group, most, bells)
  local queues = queues_of(group)
  if #queues == 1 then dispatch(queues[1], most, bells); return end
  local turn, idle = call('INCR', K.turn()), 0
  while most > 0 and idle < #queues do
    turn = turn + 1
    local rung = dispatch(queues[turn % #queues + 1], 1, bells)
    most = most - rung
    idle = rung == 0 and idle + 1 or 0
  end
end

-- Entries of records that have aged out leave their indexes, a few at a time.
local function sweep(most)
  for _, entry in ipairs(call('ZRANGEBYSCORE', K.retention(), '-inf', now, 'LIMIT', 0, most)) do
    local tenant, state, id = string.match(entry, '^([^|]+)|([^|]+)|(.+)$')
    call('ZREM', K.jobs(tenant), id)
    call('ZREM', K.jobs_in(tenant, state), id)
    call('ZREM', K.retention(), entry)
  end
end

-- The end of a job: told to whoever waits, kept for `result_ttl` ms; the next job of its context takes its turn.
local function end_job(r, state, result_ttl, context_ttl, bells)
  move(r, 'ended', state)
  call('HSET', K.job(r.id), 'state', state, 'ended', now)
  call('PEXPIRE', K.job(r.id), result_ttl)
  call('ZADD', K.retention(), now + result_ttl, r.tenant .. '|' .. state .. '|' .. r.id)
  if r.context then
    local next_id = context_release(r.tenant, r.context, r.id, context_ttl)
    local following = next_id and read(next_id)
    if following and may(following, 'ready') then
      to_ready(following)
      dispatch(following.queue, 1, bells)
    end
  end
  call('PUBLISH', K.ended(), r.id)
end
