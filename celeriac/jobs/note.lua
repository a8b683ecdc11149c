-- Note: under which name its provider keeps the answer to a call, with the call. It needs no lease: it is true whoever holds the
-- job. a: id, call, response (JSON). Answers "noted", "again", or "over" for a call that nobody will look up.
local c = call_read(a.id, a.call)
if not c or c.stands ~= 'open' and c.stands ~= 'doubt' then return 'over' end
if string.find(c.facts, '"response":', 1, true) then return 'again' end
c.facts = string.sub(c.facts, 1, -2) .. (c.facts == '{}' and '' or ',') .. '"response":' .. a.response .. '}'
call('HSET', K.calls(a.id), a.call, books.call_text(c))
if c.stands == 'doubt' then books.doubt(a.id, a.call, c, (ancestors_of(a.id))) end
return 'noted'
