-- Break off: a run met a fault of ours. It counts as a crash, and the job is tried again in shrinking company: else it would
-- meet the same fault, and buy the same answer, for ever. a: id, worker, nonce, keep. Answers {"done", what became of it, bells}
-- or {"fenced"}.
local r, bells = read(a.id), {}
if fence(r, 'break_off', a.worker, a.nonce) ~= 'mine' then return {'fenced'} end
local group = call('HGET', K.worker(a.worker), 'queues') or r.queue
local fate = take_away(r, 1, bells)
dispatch_for(group, 1 + MARGIN, bells)
return {'done', fate, bells}
