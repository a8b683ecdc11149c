-- Park: a run lets go of its slot until a time. A job that was asked to stop ends.
-- a: id, worker, nonce, reason, delay (ms), retry (whether it counts as a try), exclude (whether this worker is not to be
-- asked again), keep. Answers {"parked", resume_at, bells}, {"ended", state, bells} or {"fenced"}.
local r, bells = read(a.id), {}
local mine = fence(r, 'park', a.worker, a.nonce)
if mine == 'fenced' then return {'fenced'} end

if mine == 'mine' then
  local group = call('HGET', K.worker(a.worker), 'queues') or r.queue
  doubt_open_calls(a.id)
  local resume_at = now + a.delay
  release(r, 'park', r.stop or tostring(resume_at))
  if r.stop then stop_job(r, r.stop, bells, a.nonce)
  else
    if a.retry then call('HINCRBY', K.job(a.id), 'retries', 1) end
    if a.exclude then call('HSET', K.job(a.id), 'excluded', a.worker) end
    to_parked(r, a.reason, resume_at)
  end
  dispatch_for(group, 1 + MARGIN, bells)
end
local answer = get(a.id, 'release_answer')
if STOPPED[answer] then return {'ended', answer, bells} end
return {'parked', tonumber(answer), bells}
