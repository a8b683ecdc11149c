-- Extend: the watchdog of a worker whose loop is blocked asks for one more lease, once until its next heartbeat, and
-- takes no bells until then. The same request again changes nothing.
-- a: worker, lease (ms). Answers {"extended", end of the lease (ms)}, {"again", the same} or {"gone"}.
local ends = tonumber(call('ZSCORE', K.workers(), a.worker))
if not ends or ends <= now then return {'gone'} end
-- A heartbeat since would have moved the end.
if tonumber(call('HGET', K.worker(a.worker), 'extended')) == ends then return {'again', ends} end
ends = math.max(ends, now + a.lease)
call('ZADD', K.workers(), ends, a.worker)
change_worker(a.worker, function() call('HSET', K.worker(a.worker), 'extended', ends, 'taking', '0') end)
return {'extended', ends}
