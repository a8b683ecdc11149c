-- Park: a run lets go of its slot until a time. A job that was asked to stop ends, and so does one whose agent nobody knew
-- for too long. a: id, worker, nonce, reason, delay (ms; below 0 where nobody knows one), retry (whether it counts as a try), unknown (whether this worker
-- does not know its agent), lane (that it waits for, as `to_lane_line` takes it; or null), asked (calls that somebody has to allow, JSON; or null), keep. Answers {"parked", resume_at,
-- bells}, {"ended", state, bells} or {"fenced"}.
local r, bells = read(a.id), {}
local mine = fence(r, 'park', a.worker, a.nonce)
if mine == 'fenced' then return {'fenced'} end

if mine == 'mine' then
  local group = call('HGET', K.worker(a.worker), 'queues') or r.queue
  local unknown_since, resume_at = get(a.id, 'unknown_since'), now + (a.delay < 0 and LONGEST_LOOK or a.delay)
  doubt_open_calls(a.id)
  release(r, 'park', '')
  -- The last of them may have ended just now.
  if a.reason == 'waiting_children' and call('EXISTS', K.awaits(a.id)) == 0 then resume_at = now end
  if r.stop then stop_job(r, r.stop, bells, a.nonce)
  elseif a.unknown then resume_at = leave_to_knowing(r, a.worker, unknown_since, bells, a.nonce)
  else
    if a.retry then call('HINCRBY', K.job(a.id), 'retries', 1) end
    if a.asked ~= cjson.null then
      if a.delay < 0 then resume_at = tonumber(get(a.id, 'asked_until') or '') or now end
      call('HSET', K.job(a.id), 'asked', a.asked, 'asked_until', resume_at)
      call('HDEL', K.job(a.id), 'asked_over')
    end
    if a.lane ~= cjson.null then to_lane_line(r, a.lane, a.delay >= 0 and resume_at or nil) else to_parked(r, a.reason, resume_at) end
  end
  call('HSET', K.job(a.id), 'release_answer', get(a.id, 'state') or tostring(resume_at))
  dispatch_for(group, 1 + MARGIN, bells)
end
local answer = get(a.id, 'release_answer')
if not tonumber(answer) then return {'ended', answer, bells} end
return {'parked', tonumber(answer), bells}
