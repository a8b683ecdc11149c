-- Use: what is used of caps. a: scopes (one page of them), zone, windows (as `books.windows` takes them).
-- Answers {"windows", ms by this clock} where the windows of that time have to be said, or {"use", scope, caps as they are stored,
-- then for each of them start and end of its window (s; 0 for ever), settled, in doubt and reserved (text), scope, ...}.
local windows = books.windows(a.zone, a.windows)
if not windows then return {'windows', now} end
local found = {'use'}
for _, scope in ipairs(a.scopes) do
  local text = call('HGET', K.budgets(), scope)
  if text then
    local uses = {}
    for window in string.gmatch(text, '(%a+) %d+ [%d,]*;') do
      local w = windows[window]
      local key = w and K.use(scope, window .. '.' .. w[1]) or K.used(scope)
      local sums = call('HMGET', key, 'cost', 'in_doubt', 'reserved')
      uses[#uses + 1] = {tonumber(w and w[1] or 0), w and w[2] or 0, sums[1] or '0', sums[2] or '0', sums[3] or '0'}
    end
    found[#found + 1] = scope
    found[#found + 1] = text
    found[#found + 1] = uses
  end
end
return found
