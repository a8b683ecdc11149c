-- Take alerts: those that a sink was not told of yet, for whoever takes them to tell it. Nobody else is handed them for a while.
-- a: sink, taker (a name of its own for each time), page, lease (ms), since (ms; a sink that is new hears of nothing before).
-- Answers {how often they were tried, entries as XRANGE has them, 1 where it was told of all}.
local LONGEST = 3600000
local told = redis.pcall('HMGET', K.told_alerts(), a.sink .. '.after', a.sink .. '.until', a.sink .. '.tries', a.sink .. '.taker')
if told.err then
  call('DEL', K.told_alerts())
  told = {}
end
local after = told[1]
if not string.match(after or '', '^%d+%-?%d*$') then
  after = string.format('%.0f', a.since)
  call('HSET', K.told_alerts(), a.sink .. '.after', after)
end
local till = tonumber(told[2] or '') or 0
if till > now and till <= now + LONGEST and told[4] ~= a.taker then return {0, {}, 0} end
local entries = redis.pcall('XRANGE', K.alerts(), '(' .. after, '+', 'COUNT', a.page)
if entries.err or #entries == 0 then return {0, {}, entries.err and 0 or 1} end
call('HSET', K.told_alerts(), a.sink .. '.until', now + a.lease, a.sink .. '.taker', a.taker)
return {tonumber(told[3] or '') or 0, entries, 0}
