-- Tell of alerts: thresholds of caps that were reached since somebody was told last. They are handed out once. a: page.
-- Answers the entries of the stream, as XRANGE does.
local after = redis.pcall('GET', K.told_alerts())
local entries = redis.pcall('XRANGE', K.alerts(), type(after) == 'string' and '(' .. after or '-', '+', 'COUNT', a.page)
if entries.err then return {} end
if #entries > 0 then call('SET', K.told_alerts(), entries[#entries][1]) end
return entries
