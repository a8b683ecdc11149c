-- Told: Celery knows of this end, and the record begins to age. An end of another of the job's lives stays untold.
-- a: id, replays, keep. Answers bells to publish.
local r, bells = read(a.id), {}
local state, replays = get(a.id, 'state', 'replays')
if r and r.place == 'ended' and tonumber(replays or 0) == a.replays and call('ZSCORE', K.untold(), a.id) then
  forget_untold(a.id)
  let_age(r, state)
end
ring_next_untold(bells)
return bells
