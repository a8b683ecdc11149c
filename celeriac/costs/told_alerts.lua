-- Told alerts: a sink was told of those up to one, by who took them. a: sink, taker, id ("" for none), then ("on": it goes on with the
-- next, "done": that was all, "wait": the next could not be told, and is tried again after a while), ms (of the lease, or to wait).
-- Answers 1, or 0 where somebody else took them meanwhile: then nothing is changed, and it is for that one to tell them.
local function field(name) return a.sink .. name end
local after, taker = unpack(call('HMGET', K.told_alerts(), field('.after'), field('.taker')))
if taker ~= a.taker then return 0 end

-- Whether what is told reaches further back than one that is: an older file may have been loaded, or this is sent again.
local function is_before(id, other)
  local ms, number = string.match(id, '^(%d+)%-?(%d*)$')
  local other_ms, other_number = string.match(other or '', '^(%d+)%-?(%d*)$')
  ms, other_ms = tonumber(ms), tonumber(other_ms) or 0
  return ms < other_ms or ms == other_ms and (tonumber(number) or 0) < (tonumber(other_number) or 0)
end

if a.id ~= '' and not is_before(a.id, after) then call('HSET', K.told_alerts(), field('.after'), a.id) end
if a['then'] == 'done' then call('HDEL', K.told_alerts(), field('.until'), field('.tries'), field('.taker'))
else call('HSET', K.told_alerts(), field('.until'), now + a.ms) end
if a['then'] == 'wait' then
  call('HINCRBY', K.told_alerts(), field('.tries'), 1)
  call('HDEL', K.told_alerts(), field('.taker'))
end
return 1
