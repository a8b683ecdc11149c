-- Put budget: the caps of a scope, and who said so. a: scope, caps (text, "" for none any more), by.
-- Answers whether there was a budget or is one.
local was = call('HGET', K.budgets(), a.scope) or ''
if was == '' and a.caps == '' then return 0 end
-- First: what cannot be written down is not changed.
call('XADD', K.changes(), 'MAXLEN', '~', books.KEPT_CHANGES, '*', 'what', 'budget', 'scope', a.scope, 'by', a.by, 'was', was,
  'became', a.caps)
if a.caps == '' then call('HDEL', K.budgets(), a.scope) else call('HSET', K.budgets(), a.scope, a.caps) end
return 1
