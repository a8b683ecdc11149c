-- List: a page of a tenant's jobs, newest first, in one state or all, of one agent or all.
-- a: tenant, state ("" for all), dead, agent ("" for all), before (submission number or "+inf"), limit, fields.
-- Answers {next `before` or "", {id, whom it waits for or "", values}, ...}. Looks at no more than 500 jobs: a page may be short and not the last.
local index = a.dead and K.dead(a.tenant) or a.state ~= '' and K.jobs_in(a.tenant, a.state) or K.jobs(a.tenant)
local ids = call('ZREVRANGEBYSCORE', index, a.before, '-inf', 'WITHSCORES', 'LIMIT', 0, 500)
local rows = {''}
for i = 1, #ids, 2 do
  if #rows > a.limit then
    rows[1] = '(' .. ids[i - 1]
    return rows
  end
  -- What makes no sense is not shown, and hides no other.
  pcall(function()
    local agent = get(ids[i], 'agent')
    if agent and (a.agent == '' or agent == a.agent) then
      rows[#rows + 1] = {ids[i], waits_for(ids[i]) or '', call('HMGET', K.job(ids[i]), unpack(a.fields))}
    end
  end)
end
if #ids == 1000 then rows[1] = '(' .. ids[1000] end
return rows
