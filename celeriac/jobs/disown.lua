-- Disown: a worker hands back a job that the store believes it runs and that it does not know: a claim whose answer never
-- arrived, or what is left of a history that the store lost. No crash. a: id, worker, keep. Answers {"done", bells} or {"not"}.
local r, bells = read(a.id), {}
if r and r.newer then return {'not'} end
if not r or r.place ~= 'running' or r.worker ~= a.worker then
  if call('SREM', K.held(a.worker), a.id) == 1 then miss(a.id, 'held') end
  return {'not'}
end
doubt_open_calls(a.id)
let_go(r)
if r.stop then stop_job(r, r.stop, bells) else to_ready(r) end
dispatch(r.queue, 1, bells)
return {'done', bells}
