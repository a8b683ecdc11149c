-- Alarmed: what was set aside up to this number, in that order, has been said to somebody. a: newest (as text).
if tonumber(a.newest) > tonumber(call('GET', K.alarmed()) or 0) then call('SET', K.alarmed(), a.newest) end
