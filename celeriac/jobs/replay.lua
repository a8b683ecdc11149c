-- Replay: an ended job is started anew, by submit's door: its context's line and all limits hold for it. It keeps its
-- journal only if the context is still as the job read it. Sent twice, it is one.
-- a: id, tenant, request (random, one a call), fresh, expires_in (ms or null), keep.
-- Answers {"unknown"}, {"broken"}, {"not", state}, or {"accepted", "1" if it starts afresh, holder or "", bells}.
local r = read(a.id)
if not r or r.newer or r.tenant ~= a.tenant then return {'unknown'} end
local state, version, born, replayed = get(a.id, 'state', 'read_version', 'read_born', 'replayed')
local request, afresh = string.match(replayed or '', '^(%S+) (%d)$')
if request == a.request then return {'accepted', afresh, waits_for(a.id) or '', {}} end
if r.place ~= 'ended' then return {'not', SEEN_AS[r.place]} end
if not REPLAYABLE[state] then return {'not', state} end

-- All that is counted on, before anything is written.
if not are_counts(get(a.id, 'replays', 'steps', 'below_jobs')) then return {'broken'} end
local full = no_room()
if full then return full end
local bells, fresh = {}, a.fresh
local holder = r.context and holder_of(r.tenant, r.context, bells)
if r.context and version then
  local is, is_born = unpack(call('HMGET', K.context(r.tenant, r.context), 'version', 'born'))
  -- Who goes before it will change the conversation.
  if holder or (is or '0') ~= version or not context_same(version, born, is_born) then fresh = true end
end
for _, key in ipairs({K.job(a.id), K.journal(a.id), K.calls(a.id), K.children(a.id), K.answers(a.id), K.events(a.id)}) do
  call('PERSIST', key)
end
local idem = get(a.id, 'idempotency')
if idem then call('PERSIST', K.idempotency(r.tenant, idem)) end
if fresh then
  call('DEL', K.journal(a.id))
  call('HDEL', K.job(a.id), 'steps', 'read_version', 'read_born', 'decided')
end
call('HDEL', K.job(a.id), 'state', 'ended', 'error', 'answer', 'model', 'usage', 'appended', 'dead', 'crashes',
  'crash_steps', 'deadline', 'run_at', 'excluded', 'unknown_since', 'stop', 'lane_since', 'lane_waits', 'lane_place', 'woken')
-- A crash counts unless a step was made since: those that were made before do not count for it.
call('HSET', K.job(a.id), 'retries', 0, 'place', 'new', 'crash_steps', get(a.id, 'steps') or 0, 'replayed',
  a.request .. (fresh and ' 1' or ' 0'))
call('HINCRBY', K.job(a.id), 'replays', 1)
-- How many it may ask for, and may work for it, holds for each life.
call('HSET', K.job(a.id), 'asked_before', call('HLEN', K.children(a.id)), 'below_before', get(a.id, 'below_jobs') or 0)
call('ZREM', K.retention(), r.tenant .. '|' .. state .. '|' .. a.id)
call('ZREM', K.jobs_in(r.tenant, state), a.id)
call('ZREM', K.dead(r.tenant), a.id)
if a.expires_in ~= cjson.null then
  call('HSET', K.job(a.id), 'deadline', now + a.expires_in)
  call('ZADD', K.deadlines(), now + a.expires_in, a.id)
end
forget_untold(a.id)
r.place, r.crashes = 'new', 0
enter(r, r.context, holder, bells)
return {'accepted', fresh and '1' or '0', holder or '', bells}
