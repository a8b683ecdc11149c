-- Shared by submit and replay, before which it stands.
local MOST_FULL = 0.9 -- of Redis's memory: from here on new work is refused, since what runs has more to write

-- Looked at once a second: it costs as much as a submission.
local function no_room()
  local room = stands(K.room(), 1000) and call('GET', K.room())
  if not room then
    local memory = call('INFO', 'memory')
    local most = tonumber(string.match(memory, '\nmaxmemory:(%d+)'))
    room = most > 0 and tonumber(string.match(memory, '\nused_memory:(%d+)')) >= MOST_FULL * most and '0' or '1'
    call('SET', K.room(), room, 'PX', 1000)
  end
  return room == '0' and redis.error_reply('OOM Redis is nearly full')
end

-- A new job takes its place. Behind its context, parked until its time, or ready.
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
