-- Cancel: a job that no worker runs ends at once; a running one is asked to stop. The first end wins.
-- a: id, tenant ("" for any), remember (ms in which a submission through Celery is cancelled that comes after this; or null),
-- keep. Answers {"unknown"}, {"ended", state, bells} or {"asked", bells}.
local r, bells = read(a.id), {}
if not r or r.newer or (a.tenant ~= '' and r.tenant ~= a.tenant) then
  if a.remember ~= cjson.null then call('SET', K.revoked(a.id), 1, 'PX', math.max(1, a.remember)) end
  return {'unknown'}
end
if r.place == 'running' then
  ask_to_stop(r, 'cancelled')
  return {'asked', bells}
end
local already = r.place == 'ended'
if not already then
  local queue = r.queue
  stop_waiting(r, 'cancelled', bells)
  dispatch(queue, 1, bells)
end
return {already and 'ended' or 'cancelled', (get(a.id, 'state')), bells}
