-- Put budget: the caps of a scope, and who said so. Thresholds that are below what is used already are told at once.
-- a: scope, caps (text, "" for none any more), by, request (a name of its own for each change: sent again, it is made once), zone,
-- windows (as `books.windows` takes them).
-- Answers {"windows", ms by this clock} where the windows of that time have to be said, or {"put", whether there was a budget or is one}.
local RECENT = 100 -- changes among which one that is sent again is looked for
local windows = books.windows(a.zone, a.windows)
if not windows then return {'windows', now} end
for _, change in ipairs(call('XREVRANGE', K.changes(), '+', '-', 'COUNT', RECENT)) do
  for _, value in ipairs(change[2]) do
    if value == a.request then return {'put', 1} end
  end
end
local was = call('HGET', K.budgets(), a.scope) or ''
if was == '' and a.caps == '' then return {'put', 0} end
-- First: what cannot be written down is not changed.
call('XADD', K.changes(), 'MAXLEN', '~', books.KEPT_CHANGES, '*', 'what', 'budget', 'scope', a.scope, 'by', a.by, 'was', was,
  'became', a.caps, 'request', a.request)
if a.caps == '' then call('HDEL', K.budgets(), a.scope) else call('HSET', K.budgets(), a.scope, a.caps) end
-- What is said of it must not keep it from being changed.
pcall(books.alert, books.of({a.scope}, '', windows))
return {'put', 1}
