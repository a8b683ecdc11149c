-- Resolve: somebody found out what became of a call in doubt. It goes by the call's name and lands once, also where the record of its
-- job is gone. a: id, call, stands ("settled" or "released"), nanos (text, "0" for released), counts (for the usage, or null), by, note.
-- Answers {"resolved", bound}, {"again", bound} where the same was said before, {"other", stands, nanos} where something else was,
-- {"known", stands, nanos} for a call that was in nobody's doubt, or {"unknown"}.
local said = a.stands .. ' ' .. a.nanos
local c = call('EXISTS', K.job(a.id)) == 1 and call_read(a.id, a.call) or nil
local gone = not c
if gone then c = books.doubt_read(a.id .. ' ' .. a.call) end
if not c or c.stands ~= 'doubt' then
  local stood, nanos, bound = string.match(books.resolved(a.id, a.call) or '', '^(%a+) (%d+) (%d+)$')
  if stood and stood .. ' ' .. nanos == said then return {'again', bound} end
  if stood then return {'other', stood, nanos} end
  if not c then return {'unknown'} end
  return {'known', c.stands, c.amount}
end
-- Nobody resolves what cannot be written down.
local kind = call('TYPE', K.changes()).ok
assert(kind == 'stream' or kind == 'none', K.changes())
local was, bound = c.stands .. ' ' .. c.amount, c.bound
local marks = '"resolved":true' .. (tonumber(a.nanos) > tonumber(bound) and ',"overrun":true' or '')
c.facts = string.sub(c.facts, 1, -2) .. (c.facts == '{}' and '' or ',') .. marks .. '}'
local counts = a.counts ~= cjson.null and a.counts or nil
call_move(a.id, a.call, c, a.stands, a.nanos, counts)
if not gone and get(a.id, 'place') == 'ended' then books.list(a.id) end
books.resolve(a.id, a.call, said .. ' ' .. bound)
call('XADD', K.changes(), 'MAXLEN', '~', books.KEPT_CHANGES, '*', 'what', 'doubt', 'scope', a.id .. ' ' .. a.call, 'by', a.by,
  'was', was, 'became', said, 'note', a.note)
return {'resolved', bound}
