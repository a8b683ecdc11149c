-- Told: Celery knows of this end, and the record begins to age. An end of another of the job's lives stays untold.
-- a: id, replays, keep, later (ms: it could not be told yet, and is rung for then; 0: it was). Answers bells to publish.
local r, bells = read(a.id), {}
if is_to_tell(r) and call('ZSCORE', K.untold(), a.id) then
  local state, replays = get(a.id, 'state', 'replays')
  if tonumber(replays or 0) == a.replays then
    if a.later > 0 then
      call('ZADD', K.untold(), now + math.min(TELL_AGAIN, a.later), a.id)
      call('HDEL', K.job(a.id), 'teller', 'telling')
    else
      forget_untold(a.id)
      let_age(r, state)
    end
  end
end
ring_next_untold(bells)
return bells
