-- Due: parked jobs whose time has come are ready; jobs past their deadline expire, running ones are asked to stop. Where the
-- clock went back, parked jobs do not wait for the other one. Contexts of holders that are no more go to the next in line.
-- a: page, keep. Answers {1 if there is more, bells}.
local bells, most = {}, a.page
-- The clock went back: whose time lies further ahead than it was parked for has it from the other clock.
local from = call('GET', K.went_back())
if from then
  local parked
  from, parked = unpack(call('ZSCAN', K.parked(), from, 'COUNT', most))
  for i = 1, #parked, 2 do
    local id = parked[i]
    local r = read(id)
    local span = r and r.place == 'parked' and tonumber(get(id, 'parked_for') or '')
    if span and tonumber(parked[i + 1]) > now + span then
      if get(id, 'resume_at') then call('HSET', K.job(id), 'resume_at', now + span) end
      call('ZADD', K.parked(), now + span, id)
    end
  end
  if from == '0' then call('DEL', K.went_back()); from = nil
  else call('SET', K.went_back(), from) end
end
local more_due = each_due(K.parked(), most, function(id, r)
  call('ZREM', K.parked(), id)
  if r and r.place == 'parked' then
    try(id, 'parked', function()
      -- Nobody has decided. That its time is over is this clock's to say.
      if get(id, 'reason') == 'waiting_approval' then call('HSET', K.job(id), 'asked_over', 1) end
      leave_place(r)
      to_ready(r)
    end)
  elseif not r then set_aside(id, 'parked') end
end)
local more_late = each_due(K.deadlines(), most, function(id, r)
  call('ZREM', K.deadlines(), id)
  if r and r.place ~= 'ended' then
    try(id, 'deadlines', function()
      if r.place == 'running' then ask_to_stop(r, 'expired') else stop_waiting(r, 'expired', bells) end
    end)
  elseif not r and call('EXISTS', K.job(id)) == 1 then set_aside(id, 'deadlines') end
end)
-- Contexts with a line behind a holder that is no more. A time that lies further ahead than it may is from another clock.
for _, entry in ipairs(call('ZRANGEBYSCORE', K.behind(), '(' .. now + LOOK, '+inf', 'LIMIT', 0, most)) do
  call('ZADD', K.behind(), 'LT', now + LOOK, entry)
end
for _, entry in ipairs(call('ZRANGEBYSCORE', K.behind(), '-inf', now, 'LIMIT', 0, most)) do
  local tenant, context = string.match(entry, '^(.+):(.+)$')
  call('ZADD', K.behind(), now + LOOK, entry)
  try(entry, 'behind', function()
    holder_of(tenant, context, bells)
    context_left(tenant, context)
  end)
end
return {(more_due or more_late or from) and 1 or 0, bells}
