-- Told alerts: a sink was told of those up to one, or could not be told: then it is tried again after a while. a: sink, id ("" for
-- none), wait (ms).
local function set(field, value) call('HSET', K.told_alerts(), a.sink .. field, value) end
if a.id ~= '' then set('.after', a.id) end
if a.wait == 0 then call('HDEL', K.told_alerts(), a.sink .. '.until', a.sink .. '.tries')
else
  set('.until', now + a.wait)
  call('HINCRBY', K.told_alerts(), a.sink .. '.tries', 1)
end
return 'told'
