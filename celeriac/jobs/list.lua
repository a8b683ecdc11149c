-- List: a page of jobs, newest first, of one agent or all.
-- a: index (where they are by submission number) or ids (as `newest` answers), agent ("" for all), reason (why it is parked, "" for
-- any), before (submission number or "+inf"), most (jobs that are looked at), limit, fields.
-- Answers {next `before` or "", {id, whom it waits for or "", values}, ...}. A page may be short and not the last.
local ids = a.ids ~= cjson.null and a.ids or call('ZREVRANGEBYSCORE', a.index, a.before, '-inf', 'WITHSCORES', 'LIMIT', 0, a.most)
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
if #ids == 2 * a.most then rows[1] = '(' .. ids[#ids] end
return rows
