-- Forecast: alerts for caps that will be reached before their windows end if things go on as in the last hour, once a window. Looks at a
-- page of budgets. a: cursor ("0" to begin), page. Answers the next cursor, "0" at the end.
local windows = books.windows()
-- Nobody called since the hour began.
if not windows then return '0' end
local found = redis.pcall('HSCAN', K.budgets(), a.cursor, 'COUNT', a.page)
if found.err then return '0' end
for i = 1, #found[2], 2 do
  pcall(books.forecast, found[2][i], windows)
end
return found[1]
