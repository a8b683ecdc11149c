-- List: a page of jobs, newest first, of one tenant or all, in one state or all, of one agent or all.
-- a: tenant ("" for all), state ("" for all), dead, agent ("" for all), reason (why it is parked, "" for any), before (submission
-- number or "+inf"), limit, fields.
-- Answers {next `before` or "", {id, whom it waits for or "", values}, ...}. Looks at no more than 500 jobs: a page may be short and not the last.
local LOOKED_AT, AT_ONCE = 500, 20

local function newest(tenant, before, most)
  local index = a.dead and K.dead(tenant) or a.state ~= '' and K.jobs_in(tenant, a.state) or K.jobs(tenant)
  return call('ZREVRANGEBYSCORE', index, before, '-inf', 'WITHSCORES', 'LIMIT', 0, most)
end

-- In the order of their newest jobs, the newest last.
local function put(heads, head)
  local place = #heads + 1
  while place > 1 and heads[place - 1].seq > head.seq do place = place - 1 end
  table.insert(heads, place, head)
end

-- Of all tenants: whoever has the newest job is looked further into, until another has a newer one.
local function newest_of_all(most)
  local heads, found = {}, {}
  for _, tenant in ipairs(call('SMEMBERS', K.tenants())) do
    local ids = newest(tenant, a.before, 1)
    if ids[1] then heads[#heads + 1] = {tenant = tenant, ids = ids, at = 1, seq = tonumber(ids[2])} end
  end
  table.sort(heads, function(one, other) return one.seq < other.seq end)
  while #heads > 0 and #found < 2 * most do
    local head = table.remove(heads)
    local other = heads[#heads] and heads[#heads].seq or -1
    -- Where the store lost history, two may have one number.
    while head.seq and head.seq >= other and #found < 2 * most do
      local id, seq = head.ids[head.at], head.ids[head.at + 1]
      found[#found + 1], found[#found + 2] = id, seq
      head.at = head.at + 2
      if head.at > #head.ids then head.ids, head.at = newest(head.tenant, '(' .. seq, AT_ONCE), 1 end
      head.seq = tonumber(head.ids[head.at + 1] or '')
    end
    if head.seq then put(heads, head) end
  end
  return found
end

-- Without a condition beside the index each of them is shown.
local most = (a.agent ~= '' or a.reason ~= '') and LOOKED_AT or math.min(LOOKED_AT, a.limit + 1)
local ids = a.tenant ~= '' and newest(a.tenant, a.before, most) or newest_of_all(most)
local rows = {''}
for i = 1, #ids, 2 do
  if #rows > a.limit then
    rows[1] = '(' .. ids[i - 1]
    return rows
  end
  -- What makes no sense is not shown, and hides no other.
  pcall(function()
    local agent, reason = get(ids[i], 'agent', 'reason')
    if agent and (a.agent == '' or agent == a.agent) and (a.reason == '' or reason == a.reason) then
      rows[#rows + 1] = {ids[i], waits_for(ids[i]) or '', call('HMGET', K.job(ids[i]), unpack(a.fields))}
    end
  end)
end
if #ids == 2 * most then rows[1] = '(' .. ids[#ids] end
return rows
