-- Account: a job, its calls and the jobs that it asked for, as all of them stand in one moment. a: id, fields.
-- Answers {values, calls, {{id, values (none where its record is gone), 1 if it or one that works for it is still to end}, ...}}.

-- Whether a job, or one that works for it at any depth, has not ended. What makes no sense has not.
local function is_at_work(id)
  local look_at, seen = {id}, {}
  while #look_at > 0 do
    local next_id = table.remove(look_at)
    if not seen[next_id] then
      seen[next_id] = true
      local place, below = redis.pcall('HGET', K.job(next_id), 'place'), redis.pcall('HKEYS', K.children(next_id))
      if place and place ~= 'ended' or below.err then return true end
      for _, child in ipairs(below) do look_at[#look_at + 1] = child end
    end
  end
  return false
end

local children = {}
for _, id in ipairs(call('HKEYS', K.children(a.id))) do
  local values = redis.pcall('HMGET', K.job(id), unpack(a.fields))
  children[#children + 1] = {id, values.err and {} or values, is_at_work(id) and 1 or 0}
end
return {call('HMGET', K.job(a.id), unpack(a.fields)), call('HGETALL', K.calls(a.id)), children}
