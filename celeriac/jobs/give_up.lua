-- Give up: jobs of workers whose lease ended go to others, their open calls in doubt in the same step. Nobody is given up
-- until a full lease after an outage: the owners are alive, hold paid answers, and speak first.
-- a: lease (ms), page, keep. Answers {1 if there is more, bells, gone (workers), fates (id, what became of it, ...)}.
local bells, gone, fates, left, moved = {}, {}, {}, a.page, false
local last = tonumber(call('GET', K.round()) or now)
call('SET', K.round(), now)
-- Rounds come once a second: less than two is no outage, however short the lease.
if now - last > math.max(a.lease / 2, 2000) or now < last then call('SET', K.quiet(), now + a.lease, 'PX', a.lease) end
if now < last then call('SET', K.went_back(), '0') end
if tonumber(call('GET', K.quiet()) or 0) > now then return {0, bells, gone, fates} end

-- A time that lies further ahead than a lease may is from another clock.
for _, worker in ipairs(call('ZRANGEBYSCORE', K.workers(), now + a.lease + 1, '+inf', 'LIMIT', 0, a.page)) do
  local lease = call('TYPE', K.worker(worker)).ok == 'hash' and tonumber(call('HGET', K.worker(worker), 'lease') or '')
  call('ZADD', K.workers(), 'LT', now + (lease or a.lease), worker)
end
for _, worker in ipairs(call('ZRANGEBYSCORE', K.workers(), '-inf', now, 'LIMIT', 0, 20)) do
  if call('TYPE', K.worker(worker)).ok ~= 'hash' then
    set_aside(worker, 'workers')
    call('DEL', K.worker(worker))
  else
    change_worker(worker, function()
      call('HSET', K.worker(worker), 'taking', '0', 'crowd', call('SCARD', K.held(worker)))
    end)
  end
  call('ZREM', K.workers(), worker)
  call('ZADD', K.dying(), now, worker)
  gone[#gone + 1] = worker
end
for _, worker in ipairs(call('ZRANGE', K.dying(), 0, 199)) do
  local crowd = tonumber(call('HGET', K.worker(worker), 'crowd') or 0)
  for _, id in ipairs(call('SRANDMEMBER', K.held(worker), left)) do
    local r = read(id)
    if r and r.place == 'running' and r.worker == worker then
      local done = try(id, 'held', function()
        local fate = take_away(r, crowd, bells)
        fates[#fates + 1] = id
        fates[#fates + 1] = fate
      end)
      -- Set aside, it is nobody's any more, and stands in no line: nobody would hear a request to stop it.
      if not done and get(id, 'place') == 'running' then
        try(id, 'held', function()
          let_go(r)
          r.place = 'running'
          move(r, 'ready')
        end)
      end
    elseif not r then miss(id, 'held') end
    -- What a newer release owns keeps its dying worker until that has taken it.
    if not (r and r.newer) then
      left, moved = left - 1, true
      call('SREM', K.held(worker), id)
    end
  end
  if call('EXISTS', K.held(worker)) == 0 then
    change_worker(worker, function() call('DEL', K.worker(worker)) end)
    call('ZREM', K.dying(), worker)
    call('SREM', K.quarantined(), worker)
    call('DEL', K.stops(worker))
    moved = true
  end
  if left <= 0 then break end
end
return {moved and call('EXISTS', K.dying()) or 0, bells, gone, fates}
