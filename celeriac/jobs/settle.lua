-- Settle: the money half goes by the call's name and always lands, once; the journal half needs the lease.
-- a: id, worker, nonce, settlement (call, stands, bound, nanos, facts, heard; null for none), step (its number; null for none), told (JSON: of it, for
-- who reads along; null for none).
-- ARGV[2]: the step, packed.
-- Answers {"done", "fenced", or "gap" where steps before this one are missing; what became of the money: "booked", "again",
-- "unknown", "lost", "resolved ..." (see `book`) or ""; how many steps are stored; how the breaker of the lane changed}.
local money, changed = '', ''
if a.settlement ~= cjson.null then
  local at
  money, at = book(a.id, a.settlement)
  if money == 'booked' then changed = lane_hear(a.settlement.heard, a.settlement.call, at) end
end
if a.step ~= cjson.null then
  local r = read(a.id)
  if fence(r, 'settle', a.worker, a.nonce) ~= 'mine' then return {'fenced', money, 0, changed} end
  local stored = call('LLEN', K.journal(a.id))
  if stored < a.step then return {'gap', money, stored, changed} end
  if stored == a.step then
    call('RPUSH', K.journal(a.id), ARGV[2])
    call('HSET', K.job(a.id), 'steps', a.step + 1)
    if a.told ~= cjson.null then tell_reader(r, 'step', a.told) end
    -- What it waited for was this answer.
    if a.settlement ~= cjson.null then call('HDEL', K.job(a.id), 'lane_since', 'lane_waits', 'lane_place') end
  end
end
return {'done', money, 0, changed}
