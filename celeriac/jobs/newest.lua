-- Newest: the newest of the jobs in several indexes by submission number. a: indexes (one page of them), before (submission number, or
-- "+inf"), after (the same, or "-inf"), most. Answers {id, submission number, ...}, the newest first.
local AT_ONCE = 10

local function newest(index, before, most)
  return call('ZREVRANGEBYSCORE', index, before, a.after, 'WITHSCORES', 'LIMIT', 0, most)
end

-- In the order of their newest jobs, the newest last.
local function put(heads, head)
  local place = #heads + 1
  while place > 1 and heads[place - 1].seq > head.seq do place = place - 1 end
  table.insert(heads, place, head)
end

-- The one with the newest job is looked further into, until another has a newer one.
local heads, found = {}, {}
for _, index in ipairs(a.indexes) do
  local ids = newest(index, a.before, 1)
  if ids[1] then heads[#heads + 1] = {index = index, ids = ids, at = 1, seq = tonumber(ids[2])} end
end
table.sort(heads, function(one, other) return one.seq < other.seq end)
while #heads > 0 and #found < 2 * a.most do
  local head = table.remove(heads)
  local other = heads[#heads] and heads[#heads].seq or -1
  -- Where the store lost history, two may have one number.
  while head.seq and head.seq >= other and #found < 2 * a.most do
    local id, seq = head.ids[head.at], head.ids[head.at + 1]
    found[#found + 1], found[#found + 2] = id, seq
    head.at = head.at + 2
    if head.at > #head.ids then head.ids, head.at = newest(head.index, '(' .. seq, AT_ONCE), 1 end
    head.seq = tonumber(head.ids[head.at + 1] or '')
  end
  if head.seq then put(heads, head) end
end
return found
