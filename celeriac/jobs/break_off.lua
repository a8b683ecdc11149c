-- Break off: a run met a fault of ours. It counts as a crash, and the job is tried again in shrinking company: else it would
-- meet the same fault, and buy the same answer, for ever. a: id, worker, nonce, keep. Answers {"done", what became of it, bells}
-- or {"fenced"}.
local r, bells = read(a.id), {}
local mine = fence(r, 'break_off', a.worker, a.nonce)
if mine == 'fenced' then return {'fenced'} end
if mine == 'again' then return {'done', (get(a.id, 'release_answer')), bells} end

local group = call('HGET', K.worker(a.worker), 'queues') or r.queue
local fate = take_away(r, 1, bells)
released(r, 'break_off', fate)
dispatch_for(group, 1 + MARGIN, bells)
return {'done', fate, bells}
