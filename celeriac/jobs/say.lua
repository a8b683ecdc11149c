-- Say: that a call begins, or text of it as it comes, told to whoever reads along. Only by the run that holds the job, and each
-- piece once: what arrives again, or behind what was said since, is not said again.
-- a: id, worker, nonce, call, begins (characters before it), to (with it), begun (JSON: of which call and step), text (JSON; null
-- for none). Answers "said", "again" or "fenced".
local r = read(a.id)
if fence(r, 'say', a.worker, a.nonce) ~= 'mine' then return 'fenced' end
local call_before, to = string.match(get(a.id, 'said') or '', '^(%S+) (%d+)$')
if call_before == a.call and tonumber(to) > a.begins then return 'again' end
if call_before ~= a.call then tell_reader(r, 'start', a.begun) end
if a.text ~= cjson.null then tell_reader(r, 'delta', a.text) end
call('HSET', K.job(a.id), 'said', a.call .. ' ' .. a.to)
return 'said'
