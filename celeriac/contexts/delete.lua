-- Delete: the turns go at once. Who holds the context keeps its place in the line, but meets another version when it wants
-- to append. a: tenant, context. Answers 1, or 0 where there was nothing.
local meta, turns = K.context(a.tenant, a.context), K.turns(a.tenant, a.context)
if redis.call('EXISTS', meta) == 0 then return 0 end
redis.call('DEL', turns)
if redis.call('HGET', meta, 'holder') then
  redis.call('HINCRBY', meta, 'version', 1)
  redis.call('HSET', meta, 'messages', 0, 'bytes', 0)
else
  redis.call('DEL', meta)
end
return 1
