-- Give back: a run that was not done hands its job over in good order; others may take it at once. A job that was asked to
-- stop ends. a: id, worker, nonce, keep. Answers {"done", bells} or {"fenced"}.
local r = read(a.id)
local mine = fence(r, 'give_back', a.worker, a.nonce)
if mine == 'fenced' then return {'fenced'} end
if mine == 'again' then return {'done', {}} end

local bells = {}
local group = call('HGET', K.worker(a.worker), 'queues') or r.queue
doubt_open_calls(a.id)
release(r, 'give_back', '')
if r.stop then stop_job(r, r.stop, bells) else to_ready(r) end
dispatch_for(group, 1 + MARGIN, bells)
return {'done', bells}
