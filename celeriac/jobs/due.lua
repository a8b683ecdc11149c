-- Due: parked jobs whose time has come are ready; jobs past their deadline expire, running ones are asked to stop.
-- a: page, keep. Answers {1 if there is more, bells}.
local bells, most = {}, a.page
local due = call('ZRANGEBYSCORE', K.parked(), '-inf', now, 'LIMIT', 0, most)
for _, id in ipairs(due) do
  local r = read(id)
  call('ZREM', K.parked(), id)
  if r and r.place == 'parked' then
    try(id, 'parked', function()
      leave_place(r)
      to_ready(r)
    end)
  elseif not r then set_aside(id, 'parked') end
end
local late = call('ZRANGEBYSCORE', K.deadlines(), '-inf', now, 'LIMIT', 0, most)
for _, id in ipairs(late) do
  local r = read(id)
  call('ZREM', K.deadlines(), id)
  if r and r.place ~= 'ended' then
    try(id, 'deadlines', function()
      if r.place == 'running' then ask_to_stop(r, 'expired') else stop_waiting(r, 'expired', bells) end
    end)
  elseif not r and call('EXISTS', K.job(id)) == 1 then set_aside(id, 'deadlines') end
end
return {(#due == most or #late == most) and 1 or 0, bells}
