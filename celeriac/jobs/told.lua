-- Told: Celery knows of this end, and the record begins to age. An end of another of the job's lives stays untold.
-- a: id, replays, keep. Answers bells to publish.
local r, bells = read(a.id), {}
if is_to_tell(r) and call('ZSCORE', K.untold(), a.id) then
  local state, replays = get(a.id, 'state', 'replays')
  if tonumber(replays or 0) == a.replays then
    forget_untold(a.id)
    let_age(r, state)
  end
end
ring_next_untold(bells)
return bells
