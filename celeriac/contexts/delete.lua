-- Delete: the turns go at once. Who holds the context keeps its place in the line, but meets another version when it wants
-- to append. The same deletion again gets the same answer. a: tenant, context, request (random, one a deletion). Answers 1,
-- or 0 where there was nothing.
local meta, turns = K.context(a.tenant, a.context), K.turns(a.tenant, a.context)
local deleted = K.deleted(a.tenant, a.context)
if redis.call('GET', deleted) == a.request then return 1 end
if redis.call('EXISTS', meta) == 0 then return 0 end
redis.call('SET', deleted, a.request, 'PX', 60000)
redis.call('DEL', turns)
if redis.call('HGET', meta, 'holder') then
  redis.call('HINCRBY', meta, 'version', 1)
  redis.call('HSET', meta, 'messages', 0, 'bytes', 0)
else
  redis.call('DEL', meta)
end
return 1
