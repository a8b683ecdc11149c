-- Shared by submit and replay: a new job takes its place. Behind its context, parked until its time, or ready.
local function enter(r, context, holder, bells)
  local run_at = tonumber(call('HGET', K.job(r.id), 'run_at') or 0)
  if holder then
    context_wait(r.tenant, context, r.id, r.seq)
    move(r, 'behind')
    return nil
  end
  if context then context_hold(r.tenant, context, r.id) end
  if run_at > now then
    to_parked(r, 'scheduled', run_at)
    return tostring(run_at)
  end
  to_ready(r)
  dispatch(r.queue, 1, bells)
end
