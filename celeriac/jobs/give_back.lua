-- Give back: a run that was not done hands its job over in good order; others may take it at once.
-- a: id, worker, nonce. Answers {"done", "", bells} or {"fenced"}.
local r = read(a.id)
local mine = fence(r, 'give_back', a.worker, a.nonce)
if mine == 'fenced' then return {'fenced'} end
if mine == 'again' then return {'done', '', {}} end

local bells = {}
local group = call('HGET', K.worker(a.worker), 'queues') or r.queue
release(r, 'give_back', '')
to_ready(r)
dispatch_for(group, 1 + MARGIN, bells)
return {'done', '', bells}
